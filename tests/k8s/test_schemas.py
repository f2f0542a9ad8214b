"""Unknown fields and wrong types are refused, by a folder of definitions or else by the models of Trainer's SDK."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.violations_pods import SFT, Items, box, one

from k8s.checks import fields, schemas


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
    items: Items, crds: Path, kind: str, name: str, change: dict[str, Any], message: str
) -> None:
    broken = one(items, kind, name)
    broken["spec"] |= change
    found = list(schemas.problems([broken], crds))
    assert len(found) == 1 and message in found[0], found


def test_schemas_look_deep_into_the_pods_of_a_runtime(items: Items, crds: Path) -> None:
    box(items, *SFT)["imagePullPolicies"] = "Always"
    found = list(schemas.problems([one(items, *SFT)], crds))
    assert len(found) == 1 and "imagePullPolicies" in found[0]


def test_schemas_refuse_a_version_that_is_not_served(crds: Path) -> None:
    item = {"apiVersion": "kueue.x-k8s.io/v1alpha1", "kind": "LocalQueue", "metadata": {"name": "q"}, "spec": {}}
    assert list(schemas.problems([item], crds)) == [
        "LocalQueue/q: no CustomResourceDefinition serves kueue.x-k8s.io/v1alpha1 LocalQueue"
    ]


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


def test_the_fields_on_record_are_those_that_fit_the_definitions(
    rendered: dict[str, list[dict[str, Any]]], crds: Path
) -> None:
    current = schemas.record([item for items in rendered.values() for item in items], crds)
    assert current == fields.recorded() and fields.text(current) == fields.FILE.read_text("utf-8")


def test_definitions_may_come_as_kubectl_writes_them(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    version = {"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}}
    definition = {"spec": {"group": "example.com", "names": {"kind": "Thing"}, "versions": [version]}}
    (tmp_path / "crds.json").write_text(json.dumps({"kind": "List", "items": [definition]}), encoding="utf-8")
    thing = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"a": 1}}
    assert list(schemas.problems([thing], tmp_path)) == []
    thing["spec"] = {"a": "x", "b": 1}
    assert len(list(schemas.problems([thing], tmp_path))) == 2
