"""Makes bootstrap.ndjson from the facts asked of Kubernetes 1.37 (bootstrap-objects.json): roles and their bindings, one a
line, without what all of them have.

    python3 bootstrap.py < bootstrap-objects.json > bootstrap.ndjson
"""

import json
import sys

KINDS = [
    ("clusterroles", "ClusterRole"),
    ("clusterrolebindings", "ClusterRoleBinding"),
    ("roles", "Role"),
    ("rolebindings", "RoleBinding"),
]
ANNOTATIONS = {"rbac.authorization.kubernetes.io/autoupdate": "true"}
LABEL = ("kubernetes.io/bootstrapping", "rbac-defaults")

facts = json.load(sys.stdin)
for plural, kind in KINDS:
    for found in facts[plural]:
        metadata = dict(found["metadata"])
        assert metadata.pop("annotations") == ANNOTATIONS
        labels = dict(metadata.pop("labels"))
        assert labels.pop(LABEL[0]) == LABEL[1]
        if labels:
            metadata["labels"] = labels
        found = {**found, "kind": kind, "metadata": metadata}
        print(json.dumps(found, separators=(",", ":"), sort_keys=True))
