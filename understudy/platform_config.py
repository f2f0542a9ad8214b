"""Where the steps of a compiled pipeline run: images, sizes, GPUs, queues, deadlines, retries, secrets by name.

Operational only: nothing here changes a result, so nothing here takes part in a cache key, and `understudy run`
reads none of it. The defaults are the contracts of docs/operations.md with `k8s/`. CPU steps have no field for GPUs
and no tolerations, so they cannot ask for a GPU node.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from understudy.kubernetes_types import EnvName, Image, LabelKey, Labels, LabelValue, Name, PlainEnv, Quantity
from understudy.sections import Section

Step = Literal[
    "preflight", "ingest", "sft", "align", "sft_longer", "champion", "evaluate", "register", "promote", "notify"
]
NO_RELEASE = "@sha256:" + "0" * 64


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


class QueueConfig(Section):
    """Kueue: where GPU steps queue, how important they are, and which nodes they may name."""

    local_queue: Name
    priority_class: Name
    node_selector: Labels


class ScheduledQueue(QueueConfig):
    """Reviewed schedules own the reserved GPUs."""

    local_queue: Name = "scheduled"
    priority_class: Name = "understudy-scheduled"
    node_selector: Labels = {"understudy.dev/pool": "gpu"}


class AdhocQueue(QueueConfig):
    """A person's runs. No selector: Kueue chooses between spot nodes and idle reserved ones."""

    local_queue: Name = "adhoc"
    priority_class: Name = "understudy-adhoc"
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


class CpuStep(Section):
    """A step without GPUs: never on a GPU node, never in a GPU queue. Memory is request and limit at once."""

    cpu: Quantity = "1"
    cpu_limit: Quantity | None = None
    memory: Quantity = "4Gi"
    workdir_size: Quantity = "20Gi"
    timeout_seconds: int = Field(default=3600, gt=0)
    retry: RetryConfig = RetryConfig()
    secrets: tuple[EnvironmentSource, ...] = ()
    labels: Labels = {}


class PreflightStep(CpuStep):
    """Finds what is wrong within minutes."""

    memory: Quantity = "2Gi"
    timeout_seconds: int = Field(default=900, gt=0)


class IngestStep(CpuStep):
    """Holds the demonstrations in memory to find near duplicates."""

    cpu: Quantity = "2"
    memory: Quantity = "8Gi"
    workdir_size: Quantity = "50Gi"


class ChampionStep(CpuStep):
    """Asks the registry one question."""

    memory: Quantity = "1Gi"
    workdir_size: Quantity = "1Gi"
    timeout_seconds: int = Field(default=900, gt=0)


class RegisterStep(CpuStep):
    """Fetches the policy's files to describe them."""

    workdir_size: Quantity = "50Gi"


class PromoteStep(CpuStep):
    """Reads everything behind a version again; keys and Git's credentials come by `secrets`."""

    workdir_size: Quantity = "100Gi"


class GpuStep(CpuStep):
    """A step on GPUs: one pod with `nodes: 1`, a Kubeflow TrainJob of `nodes` pods otherwise."""

    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(default=1, ge=0)  # per node
    gpu_resource: LabelKey = "nvidia.com/gpu"
    gpu_product: LabelValue | None = None  # as GPU feature discovery labels nodes, e.g. NVIDIA-H100-80GB-HBM3
    cpu: Quantity = "8"
    memory: Quantity = "64Gi"
    workdir_size: Quantity = "190Gi"
    ephemeral_storage: Quantity = "200Gi"
    shared_memory: Quantity = "16Gi"
    timeout_seconds: int = Field(default=24 * 3600, gt=0)
    queue_timeout_seconds: int = Field(default=24 * 3600, gt=0)  # waiting for a TrainJob's quota
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
    timeout_seconds: int = Field(default=48 * 3600, gt=0)


class EvaluateStep(GpuStep):
    """One node: evaluation is not distributed."""

    nodes: Literal[1] = 1
    timeout_seconds: int = Field(default=6 * 3600, gt=0)


class NotifyStep(CpuStep):
    """The exit handler: soon, small, and with the webhook's address if there is one."""

    memory: Quantity = "1Gi"
    workdir_size: Quantity = "1Gi"
    timeout_seconds: int = Field(default=600, gt=0)
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


class EstimateConfig(Section):
    """What a run's cost is estimated from before it starts: replace by what `understudy schedule cost` measured."""

    train_tokens: int = Field(default=2_000_000, gt=0)  # prompts and responses of the training split
    prompt_tokens: int = Field(default=256, gt=0)  # of a prompt, at most
    token_passes_per_gpu_second: float = Field(default=10_000.0, gt=0)
    sampled_tokens_per_gpu_second: float = Field(default=500.0, gt=0)


class PlatformConfig(Section):
    """The cluster side of a pipeline; see docs/operations.md, "Contracts with the pipeline"."""

    namespace: Name = "understudy"
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
    max_restarts: int = Field(default=1, ge=0)  # of a TrainJob; must equal the runtime's (k8s/infrastructure/runtimes)
    labels: Labels = {"understudy.dev/cost-center": "understudy"}
    code_source_url: str = Field(
        default="https://git.example.com/ml/understudy/src/branch/production/pipelines/retrain.py",
        pattern=r"^https://\S+$",
    )
    steps: StepsConfig = StepsConfig()
    estimate: EstimateConfig = EstimateConfig()

    def step(self, name: Step) -> CpuStep:
        """Return the settings of one step."""
        settings: CpuStep = getattr(self.steps, "register_" if name == "register" else name)
        return settings


class LaunchSettings(Section):
    """What a sft or align pod needs to launch its training: the variable UNDERSTUDY_LAUNCH, as JSON."""

    step: Step
    nodes: int = Field(ge=1)
    gpus_per_node: int = Field(ge=0)
    gpu_resource: LabelKey
    namespace: Name
    runtime: Name  # ClusterTrainingRuntime
    image: Image
    queue: Name  # LocalQueue
    priority: Name  # WorkloadPriorityClass
    timeout_seconds: int = Field(gt=0)  # from admission
    queue_timeout_seconds: int = Field(gt=0)  # from creation to admission
    max_restarts: int = Field(ge=0)
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
