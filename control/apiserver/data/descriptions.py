#!/usr/bin/env python3
"""Writes descriptions.txt.gz: what Kubernetes' documentation says of every type and field, for `kubectl explain`.

  descriptions.py DIRECTORY-OF-k8s-openapi/src/v1_37

The source are the doc comments of the crate k8s-openapi (Apache-2.0), which come from Kubernetes' own OpenAPI document. A line is a
type's name, a tab, a field's name (nothing for the type itself), a tab, and the text with line ends written as \\n.
"""
import gzip, pathlib, re, sys


def plain(comment):
    text = "\n".join(line.strip()[3:].removeprefix(" ") for line in comment)
    return re.sub(r"\\([\\<>\[\]*_`#~|])", r"\1", text).replace("\\", "\\\\").replace("\n", "\\n").replace("\t", " ")


lines = []
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.rs")):
    source = path.read_text()
    named = re.match(r"// Generated from definition (\S+)", source)
    struct = re.search(r"\npub struct \w+ \{\n(.*?)\n\}", source, re.S)
    if not named or not struct:
        continue
    name = named.group(1)
    json = {rust: key for key, rust in re.findall(r'"([^"]+)" => Field::Key_(\w+)', source)}
    comment = re.findall(r"(?m)^///.*$", source[: struct.start()])
    if comment:
        lines.append(f"{name}\t\t{plain(comment)}")
    comment = []
    for line in struct.group(1).split("\n"):
        line = line.strip()
        field = re.match(r"pub (?:r#)?(\w+):", line)
        if line.startswith("///"):
            comment.append(line)
        elif field:
            if comment:
                lines.append(f"{name}\t{json.get(field.group(1), field.group(1))}\t{plain(comment)}")
            comment = []
with open(pathlib.Path(__file__).with_name("descriptions.txt.gz"), "wb") as out:
    out.write(gzip.compress("".join(line + "\n" for line in lines).encode(), 9, mtime=0))
print(len(lines), "descriptions")
