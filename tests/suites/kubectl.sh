#!/usr/bin/env bash
# Runs the functions of Kubernetes' own test/cmd against a cluster that is there, and prints "passed NAME" or "failed NAME" for each.
#
#   kubectl.sh TREE KUBECTL KUBECONFIG WORK [NAME…]
#
# TREE is Kubernetes' source, its Go module will do; it is not written to. WORK is an empty directory, where each one's log stays.
# Upstream starts etcd, an API server with the token "admin-token" and a controller manager by itself: those parts are left out.
set -o errexit -o nounset -o pipefail

tree=$1 kubectl=$2 kubeconfig=$3 work=$4
shift 4
names=("$@")

# What it sets is set below HOME.
unset KUBECONFIG
cd "$work"
for part in hack test/cmd test/fixtures test/e2e/testing-manifests third_party/forked/shell2junit; do
  mkdir -p "$(dirname "$part")"
  cp -r --no-preserve=mode "$tree/$part" "$part"
done
# A Go module keeps no modes.
chmod -R +x test/fixtures/pkg/kubectl/plugins
mkdir -p _output/bin logs tmp
cp "$kubectl" _output/bin/kubectl

administrator() { "$kubectl" --kubeconfig "$kubeconfig" "$@"; }
administrator create serviceaccount test-cmd --namespace kube-system >/dev/null
administrator create clusterrolebinding test-cmd --clusterrole cluster-admin --serviceaccount kube-system:test-cmd >/dev/null
token=$(administrator create token test-cmd --namespace kube-system --duration 4h)
# Where upstream's API server writes its certificate.
export TMPDIR=$work/tmp
administrator config view --raw -o jsonpath='{.clusters[0].cluster.certificate-authority-data}' | base64 -d >"$TMPDIR/apiserver.crt"
server=$(administrator config view -o jsonpath='{.clusters[0].cluster.server}')
grep -rlF admin-token test/cmd | xargs sed -i "s/admin-token/$token/"
# The node that upstream makes, since nothing runs pods.
administrator create -f - >/dev/null <<'NODE'
{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "127.0.0.1", "annotations": {"save-managers": "true"}}, "status": {"capacity": {"memory": "1Gi"}}}
NODE

# ALLOW_SKEW: our version has a suffix, for which kubectl's --match-server-version would stop.
export TERM=${TERM:-dumb} SECURE_API_PORT=${server##*:} SUPPORTED_RESOURCES='*' ALLOW_SKEW=true
source hack/lib/init.sh
source hack/lib/test.sh
source test/cmd/legacy-script.sh >/dev/null
kube::util::ensure-temp-dir
kube::util::ensure-gnu-sed
HOME=$KUBE_TEMP
CONTEXT=test
{
  kubectl config set-credentials test-admin --token "$token"
  kubectl config set-cluster local --insecure-skip-tls-verify --server "https://127.0.0.1:$SECURE_API_PORT"
  kubectl config set-context "$CONTEXT" --user test-admin --cluster local
  kubectl config use-context "$CONTEXT"
} >/dev/null

# Upstream's writes JUnit. Changes of variables have no effect afterwards there, either.
record_command() {
  local name=${1#run_} state=passed
  if [ ${#names[@]} -gt 0 ] && [[ " ${names[*]} " != *" $name "* ]]; then return 0; fi
  set +o errexit +o nounset
  # Alone on its line: beside "||" what it runs would not end at its first error.
  (
    set -o errexit
    "$@"
  ) >"$work/logs/$name" 2>&1 </dev/null
  [ $? -eq 0 ] || state=failed
  set -o errexit -o nounset
  echo "$state $name" >&3
}

runTests 3>&1 >"$work/logs/all" 2>&1
