"""Strict schemas: core kinds by kubernetes-validate, custom kinds by the schema in their CustomResourceDefinition.

Unknown fields are errors, as with `kubectl apply --validate=strict`. The definitions belong to other projects and are
not kept here: a folder holds them, from `kubectl get crd -o json` or their releases. Without it each field must be one
that was validated before (k8s/checks/fields.py), and Trainer's kinds are held to the typed models of its SDK, too. CEL
rules of a CRD (x-kubernetes-validations) are not evaluated: only an API server does that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from k8s.checks import fields
from k8s.checks.render import ROOT, Object, title

KUBERNETES_VERSION = "1.32"
_CORE_GROUPS = ("", "apps", "batch", "policy", "scheduling.k8s.io", "networking.k8s.io", "rbac.authorization.k8s.io")
_METADATA = {"name", "generateName", "namespace", "labels", "annotations", "finalizers", "ownerReferences"}
_RULES = {"type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required"}
_MODELS = {"ClusterTrainingRuntime": "TrainerV1alpha1ClusterTrainingRuntime", "TrainJob": "TrainerV1alpha1TrainJob"}
_RULES |= {"minProperties", "maxProperties", "uniqueItems", "multipleOf"}


def crds_folder() -> Path | None:
    """Return the folder with CustomResourceDefinitions: $UNDERSTUDY_CRDS, or shared/crds beside the project."""
    given = os.environ.get("UNDERSTUDY_CRDS")
    folder = Path(given) if given else ROOT.parent / "shared" / "crds"
    return folder if folder.is_dir() else None


def problems(items: Iterable[Object], crds: Path | None) -> Iterator[str]:
    """Yield what is wrong with each object; without a folder of CRDs see `fields`."""
    for item in items:
        group = str(item.get("apiVersion", "")).rpartition("/")[0]
        if group in _CORE_GROUPS:
            found = _core(item)
        else:
            found = _custom(item, crds) if crds else chain(_typed(item), fields.problems(item))
        yield from (f"{title(item)}: {problem}" for problem in found)


def record(items: Iterable[Object], crds: Path) -> dict[str, fields.Fields]:
    """Return the fields that valid custom objects use, as `fields.FILE` holds them."""
    custom = (item for item in items if str(item["apiVersion"]).rpartition("/")[0] not in _CORE_GROUPS)
    return fields.record(custom, _schemas(crds))


def _typed(item: Object) -> Iterator[str]:
    model = _MODELS.get(str(item["kind"]))
    if model is None:
        return
    from kubeflow_trainer_api import models
    from pydantic import ValidationError

    try:
        known = getattr(models, model).from_dict(item).to_dict()
    except ValidationError as error:
        for problem in error.errors():
            yield f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        return
    yield from (f"{path}: unknown field" for path in sorted(_leaves(item) - _leaves(known)))


def _leaves(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}" if path else key)}
    if isinstance(value, list):
        return {leaf for index, inner in enumerate(value) for leaf in _leaves(inner, f"{path}[{index}]")}
    return {path}


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
    for spec in _definitions(crds):
        for version in spec["versions"]:
            if version["served"]:
                key = (spec["group"], version["name"], spec["names"]["kind"])
                found[key] = strict(version["schema"]["openAPIV3Schema"], root=True)
    return found


def _definitions(crds: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(crds.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        yield from (item["spec"] for item in content.get("items", [content]))  # kubectl writes several as a List


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
