"""Unknown, missing and mistyped fields are refused, by definitions where they are at hand and by the record always."""

from __future__ import annotations

import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from support.definitions import DEFINITIONS
from support.violations_pods import SFT, Items, box, one

from k8s.checks import fields, schemas


@pytest.mark.parametrize("definitions", DEFINITIONS)
@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("Deployment", "mlflow", {"replica": 2}, "replica"),
        ("ClusterQueue", "understudy-adhoc", {"cohort": "understudy"}, "cohort"),
        ("ClusterTrainingRuntime", "understudy-sft", {"numNodes": 2}, "numNodes"),
        ("InferenceService", "understudy", {"predictors": {}}, "predictors"),
        ("ExternalSecret", "mlflow-database", {"refreshInterval": 5}, "refreshInterval"),
        ("ApplicationSet", "understudy", {"goTemplate": "yes"}, "goTemplate"),
    ],
)
def test_schemas_refuse_unknown_fields_and_wrong_types(
    items: Items, definitions: Path | None, kind: str, name: str, change: dict[str, Any], message: str
) -> None:
    broken = one(items, kind, name)
    assert list(schemas.problems([broken], definitions)) == []
    broken["spec"] |= change
    found = list(schemas.problems([broken], definitions))
    assert found and all(message in problem for problem in found), found


@pytest.mark.parametrize("definitions", DEFINITIONS)
def test_schemas_look_deep_into_the_pods_of_a_runtime(items: Items, definitions: Path | None) -> None:
    box(items, *SFT)["imagePullPolicies"] = "Always"
    found = list(schemas.problems([one(items, *SFT)], definitions))
    assert found and all("imagePullPolicies" in problem for problem in found)


@pytest.mark.parametrize("definitions", DEFINITIONS)
def test_schemas_refuse_a_version_that_is_not_served(definitions: Path | None) -> None:
    item = {"apiVersion": "kueue.x-k8s.io/v1alpha1", "kind": "LocalQueue", "metadata": {"name": "q"}, "spec": {}}
    (found,) = schemas.problems([item], definitions)
    told = "no CustomResourceDefinition serves" if definitions else "no fields of"
    assert found.startswith(f"LocalQueue/q: {told} kueue.x-k8s.io/v1alpha1 LocalQueue")


@pytest.mark.parametrize("definitions", DEFINITIONS)
@pytest.mark.parametrize(
    ("kind", "path", "field"),
    [
        ("ApplicationSet", (), "spec"),
        ("ApplicationSet", ("spec",), "generators"),
        ("ClusterQueue", ("spec", "resourceGroups", 0), "flavors"),
        ("ServiceMonitor", ("spec",), "selector"),
        ("PrometheusRule", ("spec", "groups", 0), "name"),
        ("ExternalSecret", ("spec", "data", 0), "remoteRef"),
        ("InferenceService", ("spec",), "predictor"),
    ],
)
def test_a_field_that_its_definition_requires_is_missed(
    items: Items, definitions: Path | None, kind: str, path: tuple[str | int, ...], field: str
) -> None:
    broken = next(item for item in items if item["kind"] == kind and holds(item, path, field))
    assert list(schemas.problems([broken], definitions)) == []
    del reduce(getitem, path, broken)[field]
    (found,) = schemas.problems([broken], definitions)
    assert field in found and "require" in found, found


def holds(item: Any, path: tuple[str | int, ...], field: str) -> bool:
    for part in path:
        try:
            item = item[part]
        except (KeyError, IndexError):
            return False
    return field in item


def test_training_runtimes_are_held_to_the_models_of_the_sdk_without_any_definitions(items: Items) -> None:
    for step in ("sft", "align"):
        assert list(schemas.problems([one(items, "ClusterTrainingRuntime", f"understudy-{step}")], None)) == []
    runtime = one(items, *SFT)
    box(items, *SFT)["imagePullPolicies"] = "Always"
    runtime["spec"]["numNodes"] = 2
    found = [problem for problem in schemas.problems([runtime], None) if "unknown field" in problem]
    assert len(found) == 2 and "imagePullPolicies: unknown field" in found[1] and "spec.numNodes: unknown" in found[0]
    runtime["spec"]["mlPolicy"]["numNodes"] = "two"
    found_type = next(iter(schemas.problems([runtime], None)))
    assert "numNodes" in found_type and "integer" in found_type


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("ClusterQueue", "understudy-adhoc", {"cohort": "understudy"}, "spec.cohort: is not among the fields"),
        ("InferenceService", "understudy", {"predictors": {}}, "spec.predictors: is not among"),
        ("ExternalSecret", "mlflow-database", {"refreshInterval": 5}, "refreshInterval: 5 was not validated, only str"),
        ("ApplicationSet", "understudy", {"goTemplate": "yes"}, "goTemplate: 'yes' was not validated, only boolean"),
        ("ClusterQueue", "understudy-adhoc", {"queueingStrategy": "Best"}, "only one of ['"),
        ("ServiceMonitor", "mlflow", {"endpoints": [{"ports": "http"}]}, "spec.endpoints[].ports: is not among"),
    ],
)
def test_without_definitions_each_field_must_have_been_validated(
    items: Items, kind: str, name: str, change: dict[str, Any], message: str
) -> None:
    if kind == "ServiceMonitor":
        name = next(item["metadata"]["name"] for item in items if item["kind"] == kind)
    broken = one(items, kind, name)
    assert list(schemas.problems([broken], None)) == []
    broken["spec"] |= change
    found = list(schemas.problems([broken], None))
    assert len(found) == 1 and message in found[0], found


def test_names_that_a_definition_leaves_open_may_change(items: Items) -> None:
    flavor = next(item for item in items if item["kind"] == "ResourceFlavor")
    flavor["spec"]["nodeLabels"] = {"another.example/label": "x"}
    assert list(schemas.problems([flavor], None)) == []
    flavor["spec"]["nodeLabels"] = {"another.example/label": 1}
    assert "nodeLabels.*: 1 was not validated" in next(iter(schemas.problems([flavor], None)))


def test_a_kind_that_was_never_validated_is_refused() -> None:
    item = {"apiVersion": "kueue.x-k8s.io/v1alpha1", "kind": "LocalQueue", "metadata": {"name": "q"}, "spec": {}}
    (found,) = schemas.problems([item], None)
    assert "no fields of kueue.x-k8s.io/v1alpha1 LocalQueue were validated" in found


@pytest.mark.parametrize("definitions", DEFINITIONS)
def test_the_record_holds_what_the_objects_use_and_nothing_else(
    rendered: dict[str, list[dict[str, Any]]], definitions: Path | None
) -> None:
    items = [item for environment in rendered.values() for item in environment]
    recorded = fields.recorded()
    assert fields.text(recorded) == fields.FILE.read_text("utf-8")
    if definitions:
        assert schemas.record(items, definitions) == recorded
    for kind, paths in recorded.items():
        mine = [item for item in items if fields.kind_of(item) == kind]
        stale = [
            path
            for path in paths
            if path and not any(any(fields.problems(item, {kind: without(paths, path)})) for item in mine)
        ]
        assert mine and stale == []


def without(paths: dict[str, list[Any]], path: str) -> dict[str, list[Any]]:
    return {key: uses for key, uses in paths.items() if key != path}


def test_definitions_may_come_as_kubectl_writes_them(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    version = {"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}}
    definition = {"spec": {"group": "example.com", "names": {"kind": "Thing"}, "versions": [version]}}
    (tmp_path / "crds.json").write_text(json.dumps({"kind": "List", "items": [definition]}), encoding="utf-8")
    thing = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"a": 1}}
    assert list(schemas.problems([thing], tmp_path)) == []
    thing["spec"] = {"a": "x", "b": 1}
    assert len(list(schemas.problems([thing], tmp_path))) == 2
