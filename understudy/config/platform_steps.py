"""What each step of a compiled pipeline asks of the cluster: size, deadline, retries, GPUs, secrets by name."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from understudy.config.kubernetes_types import (
    INT32_MAX,
    EnvName,
    LabelKey,
    Labels,
    LabelValue,
    Name,
    Quantity,
    ResourceName,
    UserLabels,
)
from understudy.config.sections import Section


class Toleration(Section):
    """One taint that a pod bears."""

    key: LabelKey
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _exists_has_no_value(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError(f"operator Exists tolerates every value of {self.key!r}; remove value {self.value!r}")
        return self


class EnvironmentSource(Section):
    """Keys of one ConfigMap or Secret, each with the environment variable it becomes."""

    name: Name
    keys: dict[str, EnvName] = Field(min_length=1)
    optional: bool = False


class RetryConfig(Section):
    """How often KFP starts a failed step again; each attempt resumes from the step's checkpoint."""

    count: int = Field(default=2, ge=0)
    backoff_seconds: int = Field(default=60, ge=0)
    backoff_factor: float = Field(default=2.0, ge=1)
    backoff_max_seconds: int = Field(default=900, ge=0)


class CpuStep(Section):
    """A step without GPUs: never on a GPU node, never in a GPU queue. Memory is request and limit at once."""

    cpu: Quantity = "1"
    cpu_limit: Quantity | None = None
    memory: Quantity = "4Gi"
    workdir_size: Quantity = "20Gi"
    timeout_seconds: int = Field(default=3600, gt=0, le=INT32_MAX)
    retry: RetryConfig = RetryConfig()
    secrets: tuple[EnvironmentSource, ...] = ()
    labels: UserLabels = {}


class PreflightStep(CpuStep):
    """Finds what is wrong within minutes."""

    memory: Quantity = "2Gi"
    timeout_seconds: int = Field(default=900, gt=0, le=INT32_MAX)


class IngestStep(CpuStep):
    """Sorts the demonstrations on its disk; with `shards` above 1, so many pods of this size read the source first."""

    cpu: Quantity = "2"
    memory: Quantity = "8Gi"
    workdir_size: Quantity = "50Gi"
    shards: int = Field(default=1, ge=1, le=256)


class ChampionStep(CpuStep):
    """Asks the registry one question."""

    memory: Quantity = "1Gi"
    workdir_size: Quantity = "1Gi"
    timeout_seconds: int = Field(default=900, gt=0, le=INT32_MAX)


class RegisterStep(CpuStep):
    """Fetches the policy's files to describe them."""

    workdir_size: Quantity = "50Gi"


class PromoteStep(CpuStep):
    """Reads everything behind a version again; keys and Git's credentials come by `secrets`."""

    workdir_size: Quantity = "100Gi"


class GpuStep(CpuStep):
    """A step on GPUs: one pod with `nodes: 1`, a Kubeflow TrainJob of `nodes` pods otherwise."""

    nodes: int = Field(default=1, ge=1, le=INT32_MAX)
    gpus: int = Field(default=1, ge=0, le=INT32_MAX)  # per node
    gpu_resource: ResourceName = "nvidia.com/gpu"
    gpu_product: LabelValue | None = None  # as GPU feature discovery labels nodes, e.g. NVIDIA-H100-80GB-HBM3
    cpu: Quantity = "8"
    memory: Quantity = "64Gi"
    workdir_size: Quantity = "190Gi"
    ephemeral_storage: Quantity = "200Gi"
    shared_memory: Quantity = "16Gi"
    timeout_seconds: int = Field(default=24 * 3600, gt=0, le=INT32_MAX)
    queue_timeout_seconds: int = Field(default=24 * 3600, gt=0, le=INT32_MAX)  # waiting for a TrainJob's quota
    node_selector: Labels = {}
    tolerations: tuple[Toleration, ...] = (
        Toleration(key="nvidia.com/gpu", operator="Equal", value="present", effect="NoSchedule"),
    )

    @model_validator(mode="after")
    def _several_nodes_have_gpus(self) -> Self:
        if self.nodes > 1 and self.gpus == 0:
            raise ValueError(f"nodes is {self.nodes} and gpus is 0; several nodes need at least one GPU each")
        return self


class TrainStep(GpuStep):
    """A GPU step that may span nodes: `runtime` is the ClusterTrainingRuntime of its TrainJob."""

    runtime: Name = "understudy-sft"


class AlignStep(TrainStep):
    """Policy, reference and discriminator share the GPU, so it needs more memory than SFT."""

    runtime: Name = "understudy-align"
    memory: Quantity = "96Gi"
    timeout_seconds: int = Field(default=48 * 3600, gt=0, le=INT32_MAX)


class EvaluateStep(GpuStep):
    """One node: evaluation is not distributed."""

    nodes: Literal[1] = 1
    timeout_seconds: int = Field(default=6 * 3600, gt=0, le=INT32_MAX)


class NotifyStep(CpuStep):
    """The exit handler: soon, small, and with the webhook's address if there is one."""

    memory: Quantity = "1Gi"
    workdir_size: Quantity = "1Gi"
    timeout_seconds: int = Field(default=600, gt=0, le=INT32_MAX)
    secrets: tuple[EnvironmentSource, ...] = (
        EnvironmentSource(
            name="understudy-notify", keys={"UNDERSTUDY_WEBHOOK_URL": "UNDERSTUDY_WEBHOOK_URL"}, optional=True
        ),
    )


class StepsConfig(Section):
    """One section per step of the DAG."""

    model_config = ConfigDict(serialize_by_alias=True)

    preflight: PreflightStep = PreflightStep()
    ingest: IngestStep = IngestStep()
    sft: TrainStep = TrainStep()
    align: AlignStep = AlignStep()
    sft_longer: TrainStep = TrainStep()
    champion: ChampionStep = ChampionStep()
    evaluate: EvaluateStep = EvaluateStep()
    register_: RegisterStep = Field(default=RegisterStep(), alias="register")  # pydantic's models have a `register`
    promote: PromoteStep = PromoteStep()
    notify: NotifyStep = NotifyStep()
