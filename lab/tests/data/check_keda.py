"""Checks manifests of KEDA's kinds against KEDA's own definitions, where no unknown field passes.

Usage: check_keda.py <folder of definitions> <manifest>...
"""

import pathlib
import sys

import jsonschema
import yaml


def strict(schema):
    """The schema, with unknown fields refused wherever the known ones are listed."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


def definitions(folder):
    """Schemas by apiVersion and kind."""
    for file in pathlib.Path(folder).glob("*.yaml"):
        crd = yaml.safe_load(file.read_text())
        for version in crd["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            # The API server knows the fields of metadata itself.
            schema["properties"]["metadata"] = {"type": "object", "required": ["name"], "additionalProperties": True}
            api = f"{crd['spec']['group']}/{version['name']}"
            yield (api, crd["spec"]["names"]["kind"]), strict(schema)


def main():
    known = dict(definitions(sys.argv[1]))
    checked = 0
    for file in sys.argv[2:]:
        for manifest in yaml.safe_load_all(pathlib.Path(file).read_text()):
            kind = (manifest["apiVersion"], manifest["kind"])
            if kind not in known:
                sys.exit(f"{file}: KEDA has no {kind}")
            try:
                jsonschema.validate(manifest, known[kind])
            except jsonschema.ValidationError as error:
                sys.exit(f"{file}: {error.json_path}: {error.message}")
            checked += 1
    print(f"{checked} checked")


main()
