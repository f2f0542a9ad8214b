"""Every environment renders, fits its schemas and keeps the policies; the two differ where they should."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.definitions import DEFINITIONS

from k8s import check
from k8s.checks import pods, schemas
from k8s.checks.render import Object

KINDS = {
    "AppProject",
    "ApplicationSet",
    "ClusterQueue",
    "ClusterTrainingRuntime",
    "Cohort",
    "CronJob",
    "Deployment",
    "ExternalSecret",
    "InferenceService",
    "LocalQueue",
    "Namespace",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "PriorityClass",
    "PrometheusRule",
    "ResourceFlavor",
    "Role",
    "RoleBinding",
    "ServiceMonitor",
    "StatefulSet",
    "WorkloadPriorityClass",
}


@pytest.mark.parametrize("name", ["staging", "production"])
def test_environment_keeps_the_policies(rendered: dict[str, list[Object]], name: str) -> None:
    items = rendered[name]
    assert {item["kind"] for item in items} >= KINDS
    assert list(check.duplicates(items)) == []
    assert list(check.policies(items, production=name == "production")) == []


@pytest.mark.parametrize("definitions", DEFINITIONS)
@pytest.mark.parametrize("name", ["staging", "production"])
def test_environment_fits_its_schemas(rendered: dict[str, list[Object]], definitions: Path | None, name: str) -> None:
    assert list(schemas.problems(rendered[name], definitions)) == []


def test_custom_kinds_are_of_the_versions_the_guide_installs(rendered: dict[str, list[Object]]) -> None:
    versions = {item["apiVersion"] for item in rendered["production"] if "." in item["apiVersion"].partition("/")[0]}
    assert {version for version in versions if "kueue" in version} == {"kueue.x-k8s.io/v1beta2"}
    assert {version for version in versions if "trainer" in version} == {"trainer.kubeflow.org/v1alpha1"}


def test_production_is_pinned_by_digest_and_says_what_is_not_released(rendered: dict[str, list[Object]]) -> None:
    unreleased = list(pods.unreleased(rendered["production"]))
    assert any("Deployment/mlflow" in problem for problem in unreleased)
    assert any("ClusterTrainingRuntime/understudy-align" in problem for problem in unreleased)
    assert not any("postgres" in problem for problem in unreleased)
    assert list(pods.images(rendered["staging"], production=True)) != []


def test_both_environments_share_the_shape(rendered: dict[str, list[Object]]) -> None:
    def names(items: list[Object]) -> set[tuple[str, str]]:
        return {(item["kind"], item["metadata"]["name"]) for item in items}

    differing = names(rendered["staging"]) ^ names(rendered["production"])
    assert {kind for kind, _ in differing} <= {"ConfigMap"}


def test_settings_name_what_the_code_reads(rendered: dict[str, list[Object]]) -> None:
    root = Path(__file__).parents[2]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (root / "understudy").rglob("*.py"))
    settings = [item for item in rendered["production"] if item["metadata"]["name"] == "understudy-settings"]
    assert len(settings) == 1
    ours = [name for name in settings[0]["data"] if name.startswith("UNDERSTUDY_")]
    assert ours
    assert [name for name in ours if name not in code] == []


def test_images_carry_the_names_that_components_use(rendered: dict[str, list[Object]]) -> None:
    from components import STEPS_IMAGE, TRAIN_IMAGE

    used = {
        container["image"].partition("@")[0].rpartition(":")[0]
        for pod in pods.templates(rendered["staging"])
        for container in pod.containers()
        if "understudy" in container.get("image", "")
    }
    assert {name.rpartition("ml/")[2] for name in used} == {
        STEPS_IMAGE.partition(":")[0],
        TRAIN_IMAGE.partition(":")[0],
    }
