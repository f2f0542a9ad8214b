"""Apply `platform:` to one task of the DAG, through kfp and kfp-kubernetes.

Only compiling for a cluster does this: `understudy run` uses the same DAG without it. What KFP 2.17 cannot say is
left out on purpose and stands in docs/operations.md: a read-only root, requests of ephemeral storage, priority classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from understudy.config.platform import CpuStep, GpuStep, LaunchSettings, PlatformConfig, QueueConfig, Step, TrainStep

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

Queue = Literal["scheduled", "adhoc"]
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
LAUNCH_VARIABLE = "UNDERSTUDY_LAUNCH"
# KFP labels every pod of a run with its id.
RUN_ID_FIELD = "metadata.labels['pipeline/runid']"
# The time a launcher needs beside the job itself: starting, asking, deleting.
LAUNCHER_MARGIN_SECONDS = 900
# What a launching pod knows and its training pods must know, too; not in the ConfigMap or Secret.
FORWARDED = ("UNDERSTUDY_RUN_ID", "UNDERSTUDY_IMAGE_DIGEST", "UNDERSTUDY_THREADS", "MLFLOW_RUN_ID")


def on_platform(platform: PlatformConfig, queue: Queue) -> Callable[[Step, Any], None]:
    """Return what `pipelines.retrain.build` calls for each task: it gives the task its step's settings."""

    def place(step: Step, task: PipelineTask) -> None:
        settings = platform.step(step)
        gpu = settings if isinstance(settings, GpuStep) and settings.gpus else None
        _identity(task, platform, settings, step)
        _environment(task, platform, settings)
        if isinstance(settings, TrainStep) and settings.gpus:
            launch = launch_settings(platform, step, settings, queue)
            task.set_env_variable(LAUNCH_VARIABLE, launch.model_dump_json())
        if gpu is None or gpu.nodes > 1:
            _cpu_pod(task, platform, settings)
        else:
            _gpu_pod(task, gpu, platform.scheduled if queue == "scheduled" else platform.adhoc)

    return place


def launch_settings(platform: PlatformConfig, step: Step, settings: TrainStep, queue: Queue) -> LaunchSettings:
    """Return what the step's pod needs to launch its training on several GPUs or nodes."""
    where = platform.scheduled if queue == "scheduled" else platform.adhoc
    return LaunchSettings(
        step=step,
        nodes=settings.nodes,
        gpus_per_node=settings.gpus,
        gpu_resource=settings.gpu_resource,
        namespace=platform.namespace,
        runtime=settings.runtime,
        image=platform.images.train,
        queue=where.local_queue,
        priority=where.priority_class,
        timeout_seconds=settings.timeout_seconds,
        queue_timeout_seconds=settings.queue_timeout_seconds,
        max_restarts=platform.max_restarts,
        cpu=settings.cpu,
        memory=settings.memory,
        ephemeral_storage=settings.ephemeral_storage,
        shared_memory=settings.shared_memory,
        node_selector=_node_selector(settings, where),
        tolerations=settings.tolerations,
        labels={**platform.labels, **settings.labels, "understudy.dev/step": step},
        config_maps=platform.config_maps,
        secrets=(*platform.secrets, *settings.secrets),
        env_names=(*FORWARDED, *platform.env),
    )


def _identity(task: PipelineTask, platform: PlatformConfig, settings: CpuStep, step: Step) -> None:
    """Image, account of the container, labels, retries."""
    from kfp import kubernetes

    task.set_container_image(platform.images.train if isinstance(settings, GpuStep) else platform.images.steps)
    kubernetes.set_image_pull_policy(task, platform.pull_policy)
    if platform.pull_secret:
        kubernetes.set_image_pull_secrets(task, [platform.pull_secret])
    kubernetes.set_security_context(
        task,
        run_as_user=platform.security.run_as_user,
        run_as_group=platform.security.run_as_group,
        run_as_non_root=platform.security.run_as_non_root,
    )
    labels = {
        "app.kubernetes.io/name": "understudy",
        "app.kubernetes.io/component": "step",
        "app.kubernetes.io/part-of": "understudy",
        "understudy.dev/step": step,
    }
    for key, value in {**platform.labels, **settings.labels, **labels}.items():
        kubernetes.add_pod_label(task, key, value)
    if settings.retry.count:
        task.set_retry(
            num_retries=settings.retry.count,
            backoff_duration=f"{settings.retry.backoff_seconds}s",
            backoff_factor=settings.retry.backoff_factor,
            backoff_max_duration=f"{settings.retry.backoff_max_seconds}s",
        )
    if step in ("preflight", "ingest", "register"):
        # What they look at may have changed since: services, the source's content (a schedule's params never do), the
        # registry. Unchanged demonstrations give the same dataset version, and every GPU step is a cache hit.
        task.set_caching_options(False)


def _environment(task: PipelineTask, platform: PlatformConfig, settings: CpuStep) -> None:
    """Plain values, ConfigMaps and Secrets by name, the run's id, and the one writable folder."""
    from kfp import kubernetes

    image = platform.images.train if isinstance(settings, GpuStep) else platform.images.steps
    threads = str(max(1, int(settings.cpu))) if settings.cpu.isdecimal() else "1"
    # A pod sees all cores of its node: without these, libraries start a thread for each.
    plain = {"UNDERSTUDY_WORKDIR": platform.workdir, "UNDERSTUDY_THREADS": threads, "OMP_NUM_THREADS": threads}
    if "@" in image:
        plain["UNDERSTUDY_IMAGE_DIGEST"] = image.partition("@")[2]
    for name, value in {**plain, **platform.env}.items():
        task.set_env_variable(name, value)
    for source in platform.config_maps:
        kubernetes.use_config_map_as_env(task, source.name, dict(source.keys), optional=source.optional)
    for source in (*platform.secrets, *settings.secrets):
        kubernetes.use_secret_as_env(task, source.name, dict(source.keys), optional=source.optional)
    kubernetes.use_field_path_as_env(task, "UNDERSTUDY_RUN_ID", RUN_ID_FIELD)
    if platform.workdir_storage_class:
        kubernetes.add_ephemeral_volume(
            task,
            volume_name="workdir",
            mount_path=platform.workdir,
            access_modes=["ReadWriteOnce"],
            size=settings.workdir_size,
            storage_class_name=platform.workdir_storage_class,
        )
    else:
        kubernetes.empty_dir_mount(task, "workdir", platform.workdir, size_limit=settings.workdir_size)


def _cpu_pod(task: PipelineTask, platform: PlatformConfig, settings: CpuStep) -> None:
    """No toleration, no GPU and no queue: Kueue's flavors are GPU nodes, and would pull the pod there."""
    from kfp import kubernetes

    launches = isinstance(settings, GpuStep) and settings.nodes > 1
    cpu, memory = (platform.launcher_cpu, platform.launcher_memory) if launches else (settings.cpu, settings.memory)
    _resources(task, cpu, None if launches else settings.cpu_limit, memory)
    seconds = settings.timeout_seconds
    if isinstance(settings, GpuStep) and launches:
        seconds += settings.queue_timeout_seconds + LAUNCHER_MARGIN_SECONDS
    kubernetes.set_timeout(task, seconds)


def _gpu_pod(task: PipelineTask, settings: GpuStep, where: QueueConfig) -> None:
    """GPUs, where they are, the queue that grants them, and shared memory for data loaders and NCCL."""
    from kfp import kubernetes

    _resources(task, settings.cpu, settings.cpu_limit, settings.memory)
    task.set_accelerator_type(settings.gpu_resource).set_accelerator_limit(settings.gpus)
    for key, value in _node_selector(settings, where).items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in settings.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    kubernetes.add_pod_label(task, QUEUE_LABEL, where.local_queue)
    kubernetes.add_pod_label(task, PRIORITY_LABEL, where.priority_class)
    # kfp's own shared-memory field is not read by KFP 2.17's driver; a volume in memory is.
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=settings.shared_memory)
    kubernetes.set_timeout(task, settings.timeout_seconds)


def _resources(task: PipelineTask, cpu: str, cpu_limit: str | None, memory: str) -> None:
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory)
    if cpu_limit:
        task.set_cpu_limit(cpu_limit)


def _node_selector(settings: GpuStep, where: QueueConfig) -> dict[str, str]:
    product = {"nvidia.com/gpu.product": settings.gpu_product} if settings.gpu_product else {}
    return {**where.node_selector, **product, **settings.node_selector}
