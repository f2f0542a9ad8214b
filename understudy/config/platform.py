"""Where the steps of a compiled pipeline run: images, sizes, GPUs, queues, deadlines, retries, secrets by name.

Operational only: nothing here changes a result, so nothing here takes part in a cache key, and `understudy run`
reads none of it. The defaults are the contracts of docs/operations.md with `k8s/`. CPU steps have no field for GPUs
and no tolerations, so they cannot ask for a GPU node.
"""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from understudy.config.kubernetes_types import (
    INT32_MAX,
    EnvName,
    Image,
    Label,
    Labels,
    Name,
    PlainEnv,
    Quantity,
    ResourceName,
    UserLabels,
)
from understudy.config.platform_steps import CpuStep, EnvironmentSource, GpuStep, StepsConfig, Toleration, TrainStep
from understudy.config.sections import Section

__all__ = [
    "CpuStep",
    "EnvironmentSource",
    "GpuStep",
    "LaunchSettings",
    "PlatformConfig",
    "QueueConfig",
    "Step",
    "Toleration",
    "TrainStep",
]

Step = Literal[
    "preflight", "ingest", "sft", "align", "sft_longer", "champion", "evaluate", "register", "promote", "notify"
]
NO_RELEASE = "@sha256:" + "0" * 64


class QueueConfig(Section):
    """Kueue: where GPU steps queue, how important they are, and which nodes they may name."""

    local_queue: Label
    priority_class: Label
    node_selector: Labels


class ScheduledQueue(QueueConfig):
    """Reviewed schedules own the reserved GPUs."""

    local_queue: Label = "scheduled"
    priority_class: Label = "understudy-scheduled"
    node_selector: Labels = {"understudy.dev/pool": "gpu"}


class AdhocQueue(QueueConfig):
    """A person's runs. No selector: Kueue chooses between spot nodes and idle reserved ones."""

    local_queue: Label = "adhoc"
    priority_class: Label = "understudy-adhoc"
    node_selector: Labels = {}


class SecurityConfig(Section):
    """Who a step's container runs as. KFP adds: no capabilities, no privilege escalation, RuntimeDefault seccomp."""

    run_as_user: int = Field(default=10001, gt=0)
    run_as_group: int = Field(default=10001, gt=0)
    run_as_non_root: Literal[True] = True


class ImagesConfig(Section):
    """The two images, by digest once there is a release (`--release` refuses zeros and tags)."""

    steps: Image = "registry.example.com/ml/understudy/steps-python" + NO_RELEASE
    train: Image = "registry.example.com/ml/understudy/train-python" + NO_RELEASE


class EstimateConfig(Section):
    """What a run's cost is estimated from before it starts: replace by what `understudy schedule cost` measured."""

    train_tokens: int = Field(default=2_000_000, gt=0)  # prompts and responses of the training split
    prompt_tokens: int = Field(default=256, gt=0)  # of a prompt, at most
    token_passes_per_gpu_second: float = Field(default=10_000.0, gt=0)
    sampled_tokens_per_gpu_second: float = Field(default=500.0, gt=0)


class PlatformConfig(Section):
    """The cluster side of a pipeline; see docs/operations.md, "Contracts with the pipeline"."""

    namespace: Label = "understudy"
    service_account: Name = "understudy-runner"
    images: ImagesConfig = ImagesConfig()
    pull_secret: Name | None = "understudy-registry"
    pull_policy: Literal["IfNotPresent", "Always"] = "IfNotPresent"
    workdir: str = Field(default="/var/understudy", pattern=r"^/[\w./-]+$")
    workdir_storage_class: Name | None = None  # null: an emptyDir; else a volume claim that lives as long as the pod
    env: PlainEnv = {}
    config_maps: tuple[EnvironmentSource, ...] = (
        EnvironmentSource(
            name="understudy-settings",
            keys={
                name: name
                for name in (
                    "MLFLOW_TRACKING_URI",
                    "MLFLOW_EXPERIMENT_NAME",
                    "UNDERSTUDY_STORAGE_URI",
                    "UNDERSTUDY_DVC_REMOTE",
                    "AWS_ENDPOINT_URL",
                    "AWS_REGION",
                    "HF_HUB_OFFLINE",
                )
            },
        ),
    )
    secrets: tuple[EnvironmentSource, ...] = (
        EnvironmentSource(
            name="understudy-object-storage",
            keys={name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
        ),
    )
    security: SecurityConfig = SecurityConfig()
    scheduled: ScheduledQueue = ScheduledQueue()
    adhoc: AdhocQueue = AdhocQueue()
    launcher_cpu: Quantity = "500m"  # of the pod that starts and watches a TrainJob
    launcher_memory: Quantity = "4Gi"
    max_restarts: int = Field(
        default=1, ge=0, le=INT32_MAX
    )  # of a TrainJob; must equal the runtime's (k8s/infrastructure/runtimes)
    labels: UserLabels = {"understudy.dev/cost-center": "understudy"}
    code_source_url: str = Field(
        default="https://git.example.com/ml/understudy/src/branch/production/pipelines/retrain.py",
        pattern=r"^https://\S+$",
    )
    steps: StepsConfig = StepsConfig()
    estimate: EstimateConfig = EstimateConfig()

    @model_validator(mode="after")
    def _each_variable_has_one_source(self) -> Self:
        for step in get_args(Step):
            names = [*self.env]
            for source in (*self.config_maps, *self.secrets, *self.step(step).secrets):
                names += source.keys.values()
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"step {step} gets {', '.join(twice)} from several of env, config_maps and secrets")
        return self

    def step(self, name: Step) -> CpuStep:
        """Return the settings of one step."""
        settings: CpuStep = getattr(self.steps, "register_" if name == "register" else name)
        return settings


class LaunchSettings(Section):
    """What a sft or align pod needs to launch its training: the variable UNDERSTUDY_LAUNCH, as JSON."""

    step: Step
    nodes: int = Field(ge=1, le=INT32_MAX)
    gpus_per_node: int = Field(ge=0, le=INT32_MAX)
    gpu_resource: ResourceName
    namespace: Name
    runtime: Name  # ClusterTrainingRuntime
    image: Image
    queue: Name  # LocalQueue
    priority: Name  # WorkloadPriorityClass
    timeout_seconds: int = Field(gt=0, le=INT32_MAX)  # from admission
    queue_timeout_seconds: int = Field(gt=0, le=INT32_MAX)  # from creation to admission
    max_restarts: int = Field(ge=0, le=INT32_MAX)
    cpu: Quantity
    memory: Quantity
    ephemeral_storage: Quantity
    shared_memory: Quantity
    node_selector: Labels
    tolerations: tuple[Toleration, ...]
    labels: Labels
    config_maps: tuple[EnvironmentSource, ...]
    secrets: tuple[EnvironmentSource, ...]
    env_names: tuple[EnvName, ...]  # variables of the launching pod whose values its training pods get, too
