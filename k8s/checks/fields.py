"""Fields of custom kinds that were seen to fit their CustomResourceDefinitions, for where those are not at hand.

The definitions belong to other projects and are not kept here. What our own objects use of them is: `fields.json`
holds, per kind, each path that was valid with its JSON types, the values where the definition allows only some, and the
fields that it requires there. A field that is not on record is an error, as an unknown one is for the API server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("fields.json")
COMMAND = "UNDERSTUDY_CRDS=FOLDER python3 -m k8s.check --record"
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array"}
_FREE, _MAP = "anything", "names"  # a subtree, or the keys of an object, that the definition leaves open
_TOP = ""  # the path of the object itself
Fields = dict[str, list[Any]]


def problems(item: Mapping[str, Any], known: Mapping[str, Fields] | None = None) -> Iterator[str]:
    """Yield each field of an object that was never seen to fit its definition."""
    kind = kind_of(item)
    fields = (recorded() if known is None else known).get(kind)
    if fields is None:
        yield f"no fields of {kind} were validated: {COMMAND}"
        return
    yield from _missing(item, _TOP, fields[_TOP])
    for key in item:
        if key not in ("apiVersion", "kind", "metadata"):
            yield from _compare(item[key], key, fields)


def kind_of(item: Mapping[str, Any]) -> str:
    """Return `group/version Kind`."""
    return f"{item.get('apiVersion')} {item.get('kind')}"


@cache
def recorded() -> dict[str, Fields]:
    """Return what the repository holds."""
    found: dict[str, Fields] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def text(found: Mapping[str, Fields]) -> str:
    """Return the content of `FILE`: a line per path, so that a change can be reviewed."""
    kinds = []
    for kind, fields in found.items():
        lines = ",\n".join(f"  {json.dumps(path)}: {json.dumps(uses)}" for path, uses in fields.items())
        kinds.append(f" {json.dumps(kind)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(kinds) + "\n}\n"


def record(items: Iterable[Mapping[str, Any]], schemas: Mapping[tuple[str, str, str], Any]) -> dict[str, Fields]:
    """Return the fields of objects that fit their schemas, by `kind_of`.

    Args:
        items: objects of custom kinds, all valid.
        schemas: strict JSON Schema by (group, version, kind).
    """
    found: dict[str, dict[str, set[Any]]] = {}
    for item in items:
        group, _, version = str(item["apiVersion"]).partition("/")
        schema = schemas[group, version, str(item["kind"])]
        properties = schema.get("properties", {})
        fields = found.setdefault(kind_of(item), {})
        fields.setdefault(_TOP, set()).update(_required(schema))
        for key in item:
            if key not in ("apiVersion", "kind", "metadata"):
                _note(item[key], key, properties[key], fields)
    return {
        kind: {path: sorted(uses, key=str) for path, uses in sorted(fields.items())}
        for kind, fields in sorted(found.items())
    }


def _note(value: Any, path: str, schema: Mapping[str, Any], fields: dict[str, set[Any]]) -> None:
    uses = fields.setdefault(path, set())
    if "enum" in schema and isinstance(value, str):
        uses.add(f"={value}")
        return
    uses.add(_type(value))
    if isinstance(value, dict):
        uses |= _required(schema)
    declared, extra = schema.get("properties", {}), schema.get("additionalProperties")
    if isinstance(value, list) and "items" in schema:
        for inner in value:
            _note(inner, f"{path}[]", schema["items"], fields)
    elif isinstance(value, dict) and isinstance(extra, dict):
        uses.add(_MAP)
        for inner in value.values():
            _note(inner, f"{path}.*", extra, fields)
    elif isinstance(value, dict) and (declared or extra is False):
        for key, inner in value.items():
            if key in declared:
                _note(inner, f"{path}.{key}", declared[key], fields)
            else:
                fields.setdefault(f"{path}.{key}", set()).add(_FREE)
    elif isinstance(value, (dict, list)):
        uses.add(_FREE)


def _compare(value: Any, path: str, fields: Fields) -> Iterator[str]:
    uses = fields.get(path)
    if uses is None:
        yield f"{path}: is not among the fields that were validated; if it is right: {COMMAND}"
        return
    if _FREE in uses:
        return
    values = sorted(use[1:] for use in uses if use.startswith("="))
    if (f"={value}" not in uses) if values and isinstance(value, str) else (_type(value) not in uses):
        told = f"one of {values}" if values else " or ".join(use for use in uses if use != _MAP and use[0] != "!")
        yield f"{path}: {value!r:.100} was not validated, only {told}; if it is right: {COMMAND}"
        return
    if isinstance(value, list):
        for inner in value:
            yield from _compare(inner, f"{path}[]", fields)
    elif isinstance(value, dict):
        yield from _missing(value, path, uses)
        for key, inner in value.items():
            yield from _compare(inner, f"{path}.*" if _MAP in uses else f"{path}.{key}", fields)


def _required(schema: Mapping[str, Any]) -> set[str]:
    return {f"!{name}" for name in schema.get("required", ())}


def _missing(value: Mapping[str, Any], path: str, uses: Iterable[str]) -> Iterator[str]:
    for name in sorted(use[1:] for use in uses if use.startswith("!")):
        if name not in value:
            yield f"{f'{path}.{name}' if path else name}: is missing, and its definition requires it"


def _type(value: Any) -> str:
    return _TYPES.get(type(value), "null")
