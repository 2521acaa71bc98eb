"""Check values against the schema that mpi-operator gives to Kubernetes. An unknown field is a fault.

`mpijob-schema.json` is `spec` of the custom resource definition of mpi-operator 0.8.2, from manifests/base of
kubeflow/mpi-operator (Copyright The Kubeflow Authors, Apache License 2.0), without its descriptions. It
includes the templates of pods. After an update of mpi-operator:

    python -m launch.kubernetes.schema kubeflow.org_mpijobs.yaml

Of JSON Schema this reads what such a definition uses: types, properties, items, required, enum, pattern.
"""

import difflib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SCHEMA = Path(__file__).with_name("mpijob-schema.json")
VERSION = "v2beta1"

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def load() -> Schema:
    """Return the schema of an MPIJob's `spec`."""
    schema: Schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return schema


def faults(value: object, schema: Schema, path: str) -> Iterator[str]:
    """Yield what is wrong with a value, each with the path of the field.

    Args:
        value: What YAML or JSON says.
        schema: What it has to be.
        path: Where it stands, such as "spec.runPolicy".
    """
    number_or_text = schema.get("x-kubernetes-int-or-string")
    expected = ["integer", "string"] if number_or_text else [schema["type"]] if "type" in schema else []
    if expected and not any(_is(value, name) for name in expected):
        yield f"{path}: expected {' or '.join(expected)}, found {_shown(value)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: expected one of {', '.join(schema['enum'])}, found {_shown(value)}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield f"{path}: {_shown(value)} does not have the form {schema['pattern']}"
    if isinstance(value, dict):
        yield from _faults_of_fields(value, schema, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), f"{path}[{index}]")


def _faults_of_fields(value: dict[str, object], schema: Schema, path: str) -> Iterator[str]:
    known: dict[str, Schema] = schema.get("properties", {})
    others = schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}: is missing"
    for name, field in value.items():
        if name in known:
            yield from faults(field, known[name], f"{path}.{name}")
        elif isinstance(others, dict):
            yield from faults(field, others, f"{path}.{name}")
        elif known and not schema.get("x-kubernetes-preserve-unknown-fields"):
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
            yield f"{path}.{name}: no such field{hint}"


def _is(value: object, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004  (a line's width)


def without_descriptions(schema: Schema) -> Schema:
    """Return a schema without its texts; a field that is called `description` stays."""
    kept: Schema = {}
    for key, part in schema.items():
        if key == "properties":
            kept[key] = {name: without_descriptions(field) for name, field in part.items()}
        elif key != "description":
            kept[key] = without_descriptions(part) if isinstance(part, dict) else part
    return kept


def take(definition: Path) -> None:
    """Replace the schema by that of another version of mpi-operator's definition."""
    versions = yaml.safe_load(definition.read_text(encoding="utf-8"))["spec"]["versions"]
    (found,) = (each for each in versions if each["name"] == VERSION)
    spec = found["schema"]["openAPIV3Schema"]["properties"]["spec"]
    SCHEMA.write_text(json.dumps(without_descriptions(spec), separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    take(Path(sys.argv[1]))
