"""What the cluster gets: settings per step, CPU steps far from GPUs, valid manifests, nothing copied by KFP."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import ParseDict, ParseError
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec
from support.definitions import DEFINITIONS

from k8s.checks import pipelines as checks
from k8s.checks import schemas
from k8s.checks.render import render
from pipelines.compile import compile_pipeline, compiled_files, content_hash, unreleased
from pipelines.settings import PRIORITY_LABEL, QUEUE_LABEL
from understudy.config import LaunchSettings, Params, PlatformConfig, load_params, validate
from understudy.errors import ConfigError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pipelines" / "compiled" / "kubernetes"
CPU_STEPS = ("preflight", "ingest", "champion", "register", "promote", "notify")
GPU_STEPS = ("sft", "align", "sft-2", "evaluate")


def params(*overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", overrides)


def executors(*overrides: str, queue: Any = "scheduled") -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return {step as KFP names it: (its container, its Kubernetes settings)}."""
    spec = compile_pipeline(params(*overrides).platform, queue).version["spec"]
    containers = spec["pipelineSpec"]["deploymentSpec"]["executors"]
    settings = spec["platformSpec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): (containers[name]["container"], settings[name]) for name in sorted(containers)}


def plain_env(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.fixture(scope="module")
def default() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    return executors()


@pytest.fixture(scope="module")
def manifests() -> tuple[dict[str, Any], dict[str, Any]]:
    head, version = render(FOLDER)
    return head, version


def test_params_yaml_states_the_defaults_of_the_code_and_no_cache_key_knows_them() -> None:
    from pipelines.arguments import RESULT_SECTIONS, params_sha256

    assert params().platform == PlatformConfig()
    assert "platform" not in RESULT_SECTIONS
    assert params_sha256(params()) == params_sha256(params("platform.steps.align.gpus=8", "platform.namespace=other"))


def test_cpu_steps_have_no_way_onto_a_gpu_node(default: Any) -> None:
    assert sorted([*CPU_STEPS, *GPU_STEPS]) == sorted(default)
    for step in CPU_STEPS:
        container, settings = default[step]
        assert "accelerator" not in container["resources"] and "steps-python" in container["image"]
        assert not {"tolerations", "nodeSelector"} & set(settings)
        # Kueue's flavors are GPU nodes: a queue's label alone would put the pod there.
        assert not {QUEUE_LABEL, PRIORITY_LABEL} & set(settings["podMetadata"]["labels"])
    assert list(checks.cpu_steps(compile_pipeline(params().platform).version)) == []


def test_gpu_steps_ask_for_gpus_their_nodes_queue_and_shared_memory(default: Any) -> None:
    for step in GPU_STEPS:
        container, settings = default[step]
        resources = container["resources"]
        assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert resources["accelerator"]["resourceCount"] == "1" and "train-python" in container["image"]
        assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"]
        assert resources["resourceMemoryLimit"] == ("96Gi" if step == "align" else "64Gi")
        assert settings["nodeSelector"]["labels"] == {"understudy.dev/pool": "gpu"}
        (toleration,) = settings["tolerations"]
        assert toleration == {
            "key": "nvidia.com/gpu", "operator": "Equal", "value": "present", "effect": "NoSchedule",
        }  # fmt: skip
        labels = settings["podMetadata"]["labels"]
        assert (labels[QUEUE_LABEL], labels[PRIORITY_LABEL]) == ("scheduled", "understudy-scheduled")
        mounts = {mount["mountPath"]: mount for mount in settings["emptyDirMounts"]}
        assert mounts["/dev/shm"]["medium"] == "Memory" and mounts["/dev/shm"]["sizeLimit"] == "16Gi"


def test_every_step_has_its_account_retries_deadline_secrets_and_cost_label(default: Any) -> None:
    retries = yaml.safe_load(compile_pipeline(params().platform).ir.split("\n---\n")[0])
    dags = [retries["root"], retries["components"]["comp-exit-handler-1"], retries["components"]["comp-condition-2"]]
    tasks = {name: task for dag in dags for name, task in dag["dag"]["tasks"].items()}
    for step, (container, settings) in default.items():
        assert settings["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        assert [entry["secretName"] for entry in settings["imagePullSecret"]] == ["understudy-registry"]
        assert int(settings["activeDeadlineSeconds"]) >= 600
        assert [entry["configMapName"] for entry in settings["configMapAsEnv"]] == ["understudy-settings"]
        names = ["understudy-object-storage"] + (["understudy-notify"] if step == "notify" else [])
        assert [entry["secretName"] for entry in settings["secretAsEnv"]] == names
        assert settings["podMetadata"]["labels"]["understudy.dev/cost-center"] == "understudy"
        expected = {"sft-2": "sft_longer"}.get(step, step)
        assert settings["podMetadata"]["labels"]["understudy.dev/step"] == expected
        assert tasks[step]["retryPolicy"] == {
            "maxRetryCount": 2, "backoffDuration": "60s", "backoffFactor": 2.0, "backoffMaxDuration": "900s",
        }  # fmt: skip
        assert plain_env(container)["UNDERSTUDY_WORKDIR"] == "/var/understudy"
        assert "@sha256:" in container["image"]
    assert plain_env(default["align"][0])["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize(
    ("override", "step", "path", "value"),
    [
        ("platform.steps.ingest.cpu=3", "ingest", "0.resources.resourceCpuRequest", "3"),
        ("platform.steps.ingest.cpu_limit=4", "ingest", "0.resources.resourceCpuLimit", "4"),
        ("platform.steps.evaluate.gpus=4", "evaluate", "0.resources.accelerator.resourceCount", "4"),
        ("platform.steps.sft.timeout_seconds=77", "sft", "1.activeDeadlineSeconds", "77"),
        ("platform.pull_policy=Always", "notify", "1.imagePullPolicy", "Always"),
        ("platform.security.run_as_user=4242", "register", "1.securityContext.runAsUser", "4242"),
        ("platform.steps.align.labels={team: blue}", "align", "1.podMetadata.labels.team", "blue"),
        (
            "platform.steps.align.gpu_product=NVIDIA-H100-80GB-HBM3",
            "align",
            "1.nodeSelector.labels.nvidia=com/gpu=product",
            "NVIDIA-H100-80GB-HBM3",
        ),
        ("platform.workdir_storage_class=fast", "sft", "1.genericEphemeralVolume.0.storageClassName", "fast"),
        ("platform.steps.align.shared_memory=32Gi", "align", "1.emptyDirMounts.1.sizeLimit", "32Gi"),
    ],
)
def test_a_setting_reaches_the_compiled_step(override: str, step: str, path: str, value: str) -> None:
    found: Any = executors(override)[step]
    for part in path.split("."):
        part = part.replace("=", ".") if part.startswith("nvidia") else part
        found = found[int(part)] if part.isdecimal() else found[part]
    assert found == value


def test_launch_settings_stand_on_training_steps_only(default: Any) -> None:
    launching = {step: plain_env(box).get("UNDERSTUDY_LAUNCH") for step, (box, _) in default.items()}
    assert {step for step, text in launching.items() if text} == {"sft", "align", "sft-2"}
    align = validate(LaunchSettings, json.loads(launching["align"] or ""), "launch")
    assert (align.step, align.runtime, align.gpus_per_node, align.memory) == ("align", "understudy-align", 1, "96Gi")
    longer = validate(LaunchSettings, json.loads(launching["sft-2"] or ""), "launch")
    assert (longer.step, longer.runtime, longer.queue) == ("sft_longer", "understudy-sft", "scheduled")


def test_with_several_nodes_the_steps_pod_only_launches() -> None:
    container, settings = executors("platform.steps.align.nodes=2", "platform.steps.align.gpus=8")["align"]
    assert "accelerator" not in container["resources"] and container["resources"]["resourceMemoryLimit"] == "4Gi"
    assert "tolerations" not in settings and QUEUE_LABEL not in settings["podMetadata"]["labels"]
    launch = json.loads(plain_env(container)["UNDERSTUDY_LAUNCH"])
    assert (launch["nodes"], launch["gpus_per_node"], launch["memory"]) == (2, 8, "96Gi")
    # The threads that this pod hands on are those of the training pods' CPUs, not of its own.
    assert "UNDERSTUDY_THREADS" in launch["env_names"] and launch["cpu"] == plain_env(container)["UNDERSTUDY_THREADS"]
    assert int(settings["activeDeadlineSeconds"]) > launch["timeout_seconds"] + launch["queue_timeout_seconds"]


def test_adhoc_runs_queue_elsewhere_and_let_kueue_choose_the_nodes() -> None:
    _, settings = executors(queue="adhoc")["align"]
    assert settings["podMetadata"]["labels"][QUEUE_LABEL] == "adhoc"
    assert "nodeSelector" not in settings and settings["tolerations"]


def test_no_content_travels_through_kfp() -> None:
    # KFP's launcher downloads the whole prefix of every input artifact: no step may have one.
    components = yaml.safe_load(compile_pipeline(params().platform).ir.split("\n---\n")[0])["components"]
    for name, component in components.items():
        assert "artifacts" not in component.get("inputDefinitions", {}), name
    assert components["comp-sft"]["outputDefinitions"]["parameters"] == {"policy_record": {"parameterType": "STRING"}}


@pytest.mark.parametrize("definitions", DEFINITIONS)
def test_manifests_fit_the_definitions(manifests: Any, definitions: Path | None) -> None:
    assert list(schemas.problems(manifests, definitions)) == []
    broken = copy.deepcopy(manifests[1])
    broken["spec"]["codeSourceUrl"] = "typo"
    assert any("codeSourceUrl" in problem for problem in schemas.problems([broken], definitions))


def test_the_pipeline_spec_fits_kfps_own_protobuf(manifests: Any) -> None:
    assert list(checks.protobuf(manifests[1])) == []
    with pytest.raises(ParseError, match="retries"):
        ParseDict({"root": {"dag": {"tasks": {"a": {"retries": 2}}}}}, PipelineSpec())


def test_names_are_content_waves_are_ordered_and_tags_within_kfps_limits(manifests: Any) -> None:
    head, version = manifests
    digest = content_hash(version["spec"])
    assert version["metadata"]["name"] == f"understudy-retrain-{digest}" == version["spec"]["displayName"]
    assert re.fullmatch(r"understudy-retrain-[0-9a-f]{12}", version["metadata"]["name"])
    waves = [int(item["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"]) for item in manifests]
    assert head["kind"] == "Pipeline" and waves[0] < waves[1]
    assert version["spec"]["pipelineName"] == head["metadata"]["name"]
    assert version["spec"]["codeSourceURL"].startswith("https://")
    for item in manifests:
        tags = item["spec"]["tags"]
        assert len(tags) <= 20 and all("." not in key and max(len(key), len(text)) <= 63 for key, text in tags.items())


def test_another_setting_is_another_version_and_the_same_one_the_same_bytes() -> None:
    first, second = compiled_files(params()), compiled_files(params())
    assert first == second
    names = {
        compile_pipeline(params(*given).platform).version["metadata"]["name"]
        for given in ([], ["platform.steps.align.gpus=2"], ["platform.code_source_url=https://git.example.com/other"])
    }
    assert len(names) == 3


def test_images_are_those_of_the_production_release(default: Any) -> None:
    released = yaml.safe_load((ROOT / "k8s/releases/production/kustomization.yaml").read_text())["images"]
    known = {f"{entry['newName']}@{entry['digest']}" for entry in released}
    assert {container["image"] for container, _ in default.values()} == known
    tagged = params("platform.images.steps=registry.example.com/steps-python:1").platform
    assert len(list(unreleased(tagged))) == 2


def test_kubernetes_settings_parse_as_kfps_own_message(default: Any) -> None:
    for _, settings in default.values():
        ParseDict(settings, KubernetesExecutorConfig())


def test_a_setting_that_kfp_refuses_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="steps.align: nodes is 2 and gpus is 0"):
        params("platform.steps.align={nodes: 2, gpus: 0}")
