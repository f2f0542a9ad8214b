"""Strict schemas: core kinds by kubernetes-validate, custom kinds by the schema in their CustomResourceDefinition.

Unknown fields are errors, as with `kubectl apply --validate=strict`. CEL rules of a CRD (x-kubernetes-validations) are
not evaluated: only an API server does that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from k8s.checks.render import ROOT, Object, title

KUBERNETES_VERSION = "1.32"
_CORE_GROUPS = ("", "apps", "batch", "policy", "scheduling.k8s.io", "networking.k8s.io", "rbac.authorization.k8s.io")
_METADATA = {"name", "generateName", "namespace", "labels", "annotations", "finalizers", "ownerReferences"}
_RULES = {"type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required"}
_RULES |= {"minProperties", "maxProperties", "uniqueItems", "multipleOf"}


def crds_folder() -> Path | None:
    """Return the folder with CustomResourceDefinitions: $UNDERSTUDY_CRDS, or shared/crds beside the project."""
    given = os.environ.get("UNDERSTUDY_CRDS")
    folder = Path(given) if given else ROOT.parent / "shared" / "crds"
    return folder if folder.is_dir() else None


def problems(items: Iterable[Object], crds: Path | None) -> Iterator[str]:
    """Yield what is wrong with each object; custom kinds are left out when there is no folder of CRDs."""
    for item in items:
        group = str(item.get("apiVersion", "")).rpartition("/")[0]
        found = _core(item) if group in _CORE_GROUPS else (_custom(item, crds) if crds else ())
        yield from (f"{title(item)}: {problem}" for problem in found)


def _core(item: Object) -> Iterator[str]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(item, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(str(part) for part in error.path)}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        yield f"Kubernetes {KUBERNETES_VERSION} has no {item.get('apiVersion')} {item.get('kind')}"


def _custom(item: Object, crds: Path) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    group, _, version = str(item["apiVersion"]).partition("/")
    schema = _schemas(crds).get((group, version, str(item["kind"])))
    if schema is None:
        yield f"no CustomResourceDefinition serves {item['apiVersion']} {item['kind']}"
        return
    unknown = sorted(set(item.get("metadata", {})) - _METADATA)
    if unknown:
        yield f"metadata: unknown fields {unknown}"
    for error in Draft202012Validator(schema).iter_errors(item):
        yield f"{'.'.join(str(part) for part in error.absolute_path) or 'top'}: {error.message[:300]}"


@cache
def _schemas(crds: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = {}
    for path in sorted(crds.glob("*.json")):
        spec = json.loads(path.read_text(encoding="utf-8"))["spec"]
        for version in spec["versions"]:
            if version["served"]:
                key = (spec["group"], version["name"], spec["names"]["kind"])
                found[key] = strict(version["schema"]["openAPIV3Schema"], root=True)
    return found


def strict(schema: dict[str, Any], root: bool = False) -> dict[str, Any]:
    """Turn a structural OpenAPI v3 schema into JSON Schema that refuses fields which the API server would drop."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | {key: schema[key] for key in ("pattern", "enum") if key in schema}
    result = {key: value for key, value in schema.items() if key in _RULES}
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        result["type"] = [schema["type"], "null"]
    if "items" in schema:
        result["items"] = strict(schema["items"])
    for key in ("allOf", "anyOf", "oneOf"):
        if key in schema:
            # These only restrict values in structural schemas; the fields themselves are declared beside them.
            result[key] = [_loose(part) for part in schema[key]]
    if "not" in schema:
        result["not"] = _loose(schema["not"])
    if "properties" in schema:
        result["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if root:
            result["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
            result["properties"]["metadata"] = {"type": "object"}
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        result["additionalProperties"] = strict(extra)
    elif not schema.get("x-kubernetes-preserve-unknown-fields") and schema.get("type") == "object" and extra is None:
        result["additionalProperties"] = False
    return result


def _loose(schema: dict[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in schema.items() if key in _RULES and key != "type"}
    if "properties" in schema:
        result["properties"] = {name: _loose(value) for name, value in schema["properties"].items()}
    for key in ("allOf", "anyOf", "oneOf"):
        if key in schema:
            result[key] = [_loose(part) for part in schema[key]]
    return result
