#!/usr/bin/env python3
"""Writes schema.txt, the table of the API's types, from what Kubernetes publishes about itself.

    generate.py FACTS MODULES [VERSION] > schema.txt

FACTS    a folder with openapi-v2-definitions.json and openapi-v3/*.json, as a server answers them, descriptions left out
MODULES  the folder of the Go modules, ~/go/pkg/mod/k8s.io; read are the struct tags and the message numbers of
         api, apimachinery, apiextensions-apiserver and kube-aggregator (types.go, and generated.proto to check against)
VERSION  of the modules, default v0.37.0

OpenAPI says lists' kinds, merge keys, enumerations, required fields and defaults. Go's structs say what OpenAPI does not:
protobuf numbers, which zero values are left out of JSON, and the names that decoding errors use. No prose is taken over.

The table, a line for each thing (coracle_api::schema::table reads it):

    package ALIAS NAME                   core.v1 io.k8s.api.core.v1
    type NAME ATTRIBUTE…                 gvk=GROUP/VERSION/KIND,… atomic unions=JSON hidden (not part of OpenAPI)
    FIELD NUMBER TYPE ATTRIBUTE…         (after one space)

NUMBER   protobuf number; OUTER.INNER (a path) for a field of an embedded struct; 0 for none
TYPE     s string, B bytes, t Time, u MicroTime, q Quantity, x IntOrString, i int32, l int64, d double, b boolean,
         aR RawExtension, aF FieldsV1, aJ JSON, aA aB aS JSONSchemaPropsOr(Array Bool StringArray), aV anything, [T list, {T map,
         @Type of the same package, @alias:Type of another
FIELD ATTRIBUTES
         *  pointer in Go      -  omitempty      0  omitzero      !  required      ~  OpenAPI names the zero value as default
         atomic set map=KEYS   how apply takes a list or a map; granular is said of maps alone
         merge retain replace key=K    how strategic merge patch does
         enum=A|B  items=A|B (of a list's or map's; ^ is a space)  default=JSON  go=NAME of its type in Go, where it does not follow from TYPE  in=NAME of the embedded struct (NAME.NAME of two)
"""
import glob, json, os, re, sys

facts, modules = sys.argv[1:3]
version = sys.argv[3] if len(sys.argv) > 3 else "v0.37.0"

MODULE = {
    "io.k8s.apimachinery.": ("apimachinery", "k8s.io/apimachinery/"),
    "io.k8s.api.": ("api", "k8s.io/api/"),
    "io.k8s.apiextensions-apiserver.": ("apiextensions-apiserver", "k8s.io/apiextensions-apiserver/"),
    "io.k8s.kube-aggregator.": ("kube-aggregator", "k8s.io/kube-aggregator/"),
}
META, RUNTIME = "io.k8s.apimachinery.pkg.apis.meta.v1", "io.k8s.apimachinery.pkg.runtime"
EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1"
# Types with a form of their own in JSON.
SPECIAL = {
    META + ".Time": "t", META + ".MicroTime": "u", "io.k8s.apimachinery.pkg.api.resource.Quantity": "q",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "x", RUNTIME + ".RawExtension": "aR", META + ".FieldsV1": "aF",
    EXTENSIONS + ".JSON": "aJ", EXTENSIONS + ".JSONSchemaPropsOrArray": "aA", EXTENSIONS + ".JSONSchemaPropsOrBool": "aB",
    EXTENSIONS + ".JSONSchemaPropsOrStringArray": "aS",
}
BASIC = {"string": "s", "bool": "b", "int32": "i", "int64": "l", "int": "l", "float64": "d", "uint8": "i", "uint16": "i", "uint32": "l"}
# Lists that are told apart, when they are empty, from what is absent, although they are no pointers.
KEPT = {("io.k8s.api.autoscaling.v2", "HPAScalingRules", "policies"), ("io.k8s.api.networking.v1", "ServiceCIDRSpec", "cidrs")}
# What clients send or get although no OpenAPI document describes it.
HIDDEN = [META + "." + n for n in ["PartialObjectMetadata", "PartialObjectMetadataList", "Table", "List", "ListOptions", "GetOptions",
                                   "CreateOptions", "UpdateOptions", "PatchOptions"]]
HIDDEN += ["io.k8s.api.admission.v1.AdmissionReview", EXTENSIONS + ".ConversionReview", "io.k8s.api.apidiscovery.v2.APIGroupDiscoveryList"]


def folder(package):
    module, path = next(v for k, v in MODULE.items() if (package + ".").startswith(k))
    rest = package[len(next(k for k in MODULE if (package + ".").startswith(k))):].replace(".", "/")
    return os.path.join(modules, f"{module}@{version}", rest)


def package_of(go_import):
    for start, (_, path) in MODULE.items():
        if go_import.startswith(path):
            return start + go_import[len(path):].replace("/", ".")


class Package:
    """The type declarations of one Go package."""

    def __init__(self, name):
        self.name, self.types, self.imports = name, {}, {}
        for file in sorted(glob.glob(folder(name) + "/*.go")):
            base = os.path.basename(file)
            if base.endswith("_test.go") or base.startswith(("zz_", "generated")) or "swagger" in base or "fuzz" in base:
                continue
            text = re.sub(r"^\s*//.*$", "", open(file).read(), flags=re.M)
            text = re.sub(r"^\s*/\*.*?\*/", "", text, flags=re.M | re.S)
            imports = {}
            for alias, path in re.findall(r'^\s*(?:import\s+)?(\w+\s+)?"([\w./-]+)"$', text, flags=re.M):
                imports[alias.strip() or path.rsplit("/", 1)[-1]] = path
            for found in re.finditer(r"^type (\w+) (struct \{\n(.*?)^\}|struct ?\{ ?\}|[^\n{]+$)", text, flags=re.M | re.S):
                body = found.group(3) if found.group(2).startswith("struct") else None
                kind = "struct" if found.group(2).startswith("struct") else found.group(2).split("//")[0].strip()
                self.types.setdefault(found.group(1), (kind, body or "", imports))


packages = {}


def package(name):
    if name not in packages:
        packages[name] = Package(name)
    return packages[name]


def lookup(go_type, here, imports):
    """(package, name) of a named Go type, or None for a basic one."""
    if "." in go_type:
        alias, name = go_type.split(".")
        target = package_of(imports.get(alias, ""))
        return (target, name) if target else None
    return None if go_type in BASIC else (here, go_type)


def go_name(go_type, here, imports):
    """The type as reflect prints it."""
    for mark in ("*", "[]"):
        if go_type.startswith(mark):
            return mark + go_name(go_type[len(mark):], here, imports)
    if found := re.match(r"map\[([\w.]+)\](.*)", go_type):
        return f"map[{go_name(found.group(1), here, imports)}]{go_name(found.group(2), here, imports)}"
    if go_type == "interface{}":
        return "interface {}"
    if go_type == "byte":
        return "uint8"
    if named := lookup(go_type, here, imports):
        return named[0].rsplit(".", 1)[-1] + "." + named[1]
    if "." in go_type:
        return imports.get(go_type.split(".")[0], go_type).rsplit("/", 1)[-1] + "." + go_type.split(".")[1]
    return go_type


wanted, queue = {}, []


def want(package_name, name):
    if (package_name, name) not in wanted:
        wanted[package_name, name] = None
        queue.append((package_name, name))


def alias_of(name):
    return ".".join(name.split(".")[-2:])


def type_of(go_type, here, imports):
    """(TYPE, name in Go that would follow from it)."""
    if go_type.startswith("*"):
        code, derived = type_of(go_type[1:], here, imports)
        return code, "*" + derived
    if go_type == "[]byte":
        return "B", "[]uint8"
    if go_type.startswith("[]"):
        code, derived = type_of(go_type[2:], here, imports)
        return "[" + code, "[]" + derived
    if found := re.match(r"map\[[\w.]+\](.*)", go_type):
        code, derived = type_of(found.group(1), here, imports)
        return "{" + code, "map[string]" + derived
    if go_type == "interface{}":
        return "aV", "interface {}"
    if go_type in BASIC:
        return BASIC[go_type], {"s": "string", "b": "bool", "i": "int32", "l": "int64", "d": "float64"}[BASIC[go_type]]
    named = lookup(go_type, here, imports)
    if named is None:
        raise SystemExit(f"{here}: what is {go_type}?")
    full = ".".join(named)
    if full in SPECIAL:
        derived = {"t": "v1.Time", "u": "v1.MicroTime", "q": "resource.Quantity", "x": "intstr.IntOrString"}
        return SPECIAL[full], derived.get(SPECIAL[full], "?")
    if named[1] not in package(named[0]).types:
        raise SystemExit(f"{full} is not declared")
    kind, _, its = package(named[0]).types[named[1]]
    if kind == "struct":
        want(*named)
        prefix = "" if named[0] == here else alias_of(named[0]) + ":"
        return "@" + prefix + named[1], named[0].rsplit(".", 1)[-1] + "." + named[1]
    code, _ = type_of(kind, named[0], its)
    if code.startswith("@") and named[0] != here and ":" not in code:
        code = "@" + alias_of(named[0]) + ":" + code[1:]
    return code, type_of(kind, named[0], its)[1]


def fields_of(here, name, outer=None, embedded=None):
    _, body, imports = package(here).types[name]
    out = []
    for line in body.splitlines():
        line = line.strip()
        found = re.match(r"^(?:(\w+)\s+)?(\*?[\w.\[\]*{}]+)\s+`(.*)`", line)
        if not found:
            if line and not line.startswith(("}", "//")):
                raise SystemExit(f"{here}.{name}: {line}?")
            continue
        field, go_type, tags = found.groups()
        tag = dict(re.findall(r'(\w+):"([^"]*)"', tags))
        parts = tag.get("json", field or "").split(",")
        if parts[0] == "-":
            continue
        proto = tag.get("protobuf", "").split(",")
        number = proto[1] if len(proto) > 1 else "0"
        if parts[0] == "" and ("inline" in parts[1:] or field is None):
            if field is not None and go_type != "":
                raise SystemExit(f"{here}.{name}: inline field {field}")
            target = lookup(go_type.lstrip("*"), here, imports)
            if target == (META, "TypeMeta") or target == (RUNTIME, "TypeMeta"):
                number = None
            elif outer:
                number = f"{outer}.{number}"
            names = target[1] if embedded is None else embedded + "." + target[1]
            out += fields_of(*target, outer=number, embedded=names)
            continue
        code, derived = type_of(go_type, here, imports)
        if embedded and outer is None:  # TypeMeta: not in protobuf
            number = "0"
        elif outer and outer != "0":
            number = f"{outer}.{number}"
        if code.startswith("@") and embedded and ":" not in code:
            code = "@" + alias_of(here) + ":" + code[1:]
        plain = go_name(go_type, here, imports)
        attributes = ["*"] if go_type.startswith("*") or (here, name, parts[0]) in KEPT else []
        attributes += ["-"] if "omitempty" in parts[1:] else []
        attributes += ["0"] if "omitzero" in parts[1:] else []
        go = plain.lstrip("*") if plain.lstrip("*") != derived.lstrip("*") else None
        out.append({"name": parts[0] or field, "number": number, "code": code, "flags": attributes, "go": go, "in": embedded})
    return out


definitions = json.load(open(facts + "/openapi-v2-definitions.json"))
v3 = {}
for file in sorted(glob.glob(facts + "/openapi-v3/*.json")):
    v3.update(((json.load(open(file)).get("components") or {}).get("schemas") or {}))

for full in list(definitions) + HIDDEN:
    if full not in SPECIAL and full != META + ".Patch":
        want(*full.rsplit(".", 1))
while queue:
    here, name = queue.pop()
    if name not in package(here).types:
        raise SystemExit(f"{here}.{name} is not declared")
    wanted[here, name] = fields_of(here, name)

numbers = 0
for here in sorted({p for p, _ in wanted}):
    proto = folder(here) + "/generated.proto"
    if not os.path.exists(proto):
        continue
    messages = {}
    for found in re.finditer(r"^message (\w+) \{\n(.*?)^\}", open(proto).read(), flags=re.M | re.S):
        body = re.sub(r"^\s*//.*$", "", found.group(2), flags=re.M)
        messages[found.group(1)] = {n: k for n, k in re.findall(r"(\w+) = (\d+);", body)}
    for (p, name), fields in wanted.items():
        for field in fields if p == here else []:
            if "." not in field["number"] and field["number"] != "0" and name in messages:
                numbers += 1
                if field["number"] not in messages[name].values():
                    raise SystemExit(f"{here}.{name}.{field['name']}: protobuf disagrees on {field['number']}")
            if name not in messages:
                field["number"] = "0"

print("# Written by generate.py from Kubernetes", version.replace("v0.", "1."), "and not by hand. The format is described there.")
last = None
for (here, name), fields in sorted(wanted.items()):
    if here != last:
        print("package", alias_of(here), here)
        last = here
    definition = definitions.get(f"{here}.{name}")
    three = v3.get(f"{here}.{name}", {}).get("properties", {})
    words = ["type", name]
    if definition is None:
        words.append("hidden")
    definition = definition or {}
    if kinds := definition.get("x-kubernetes-group-version-kind"):
        words.append("gvk=" + ",".join(f"{k['group']}/{k['version']}/{k['kind']}" for k in kinds))
    if "x-kubernetes-map-type" in definition:
        words.append(definition["x-kubernetes-map-type"])
    if unions := definition.get("x-kubernetes-unions"):
        words.append("unions=" + json.dumps(unions, separators=(",", ":")))
    print(*words)
    properties = definition.get("properties", {})
    if definition and {f["name"] for f in fields} != set(properties):
        print(f"{here}.{name}: fields differ:", {f["name"] for f in fields} ^ set(properties), file=sys.stderr)
    for field in fields:
        said, also = properties.get(field["name"], {}), three.get(field["name"], {})
        words = [field["name"], field["number"], field["code"], *field["flags"]]
        if field["name"] in definition.get("required", []):
            words.append("!")
        kind = said.get("x-kubernetes-list-type") or said.get("x-kubernetes-map-type")
        if kind == "map":
            words.append("map=" + ",".join(said["x-kubernetes-list-map-keys"]))
        elif kind:
            words.append(kind)
        for strategy in filter(None, said.get("x-kubernetes-patch-strategy", "").split(",")):
            words.append({"merge": "merge", "retainKeys": "retain", "replace": "replace"}[strategy])
        if key := said.get("x-kubernetes-patch-merge-key"):
            words.append("key=" + key)
        if "enum" in said:
            words.append("enum=" + "|".join(said["enum"]).replace(" ", "^"))
        for elements in (said.get("items", {}), said.get("additionalProperties", {})):
            if "enum" in elements:
                words.append("items=" + "|".join(elements["enum"]).replace(" ", "^"))
        if "default" in also:
            zero = also["default"] in ("", {}, False) or (also["default"] == 0)
            words.append("~" if zero else "default=" + json.dumps(also["default"]))
        if field["go"]:
            words.append("go=" + field["go"])
        if field["in"]:
            words.append("in=" + field["in"])
        print("", *words)
print(f"{len(wanted)} types, {numbers} protobuf numbers checked", file=sys.stderr)
