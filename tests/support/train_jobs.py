"""What the tests of the launcher share: a clock that only waits move, settings, the cluster's objects, RBAC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from support.kubernetes_api import NAMESPACE, Job, KubernetesApi

from understudy.config.platform import EnvironmentSource, LaunchSettings, Toleration
from understudy.platform.launch_request import Exchange, Request, write_result
from understudy.platform.trainjob.cluster import Cluster
from understudy.platform.trainjob.job import job_name, train_job
from understudy.platform.trainjob.launcher import Launcher, Patience
from understudy.records import DatasetRef, PolicyRef, Record

ROOT = Path(__file__).parents[2]
RUN_ID = "Retrain_2026-11-24/07:00"
DATASET = DatasetRef("s3://b/dataset", "0" * 32 + ".dir", 10, {"train": 10}, 100, 1, "x.jsonl", "1" * 64, None)
POLICY = PolicyRef("s3://b/policy/2", "2" * 64, "sft", DATASET.md5, None, "3" * 64, "4" * 64, "scratch", 1.5, 100)


class VirtualClock:
    """Time passes when someone waits; `stop_at` is when the process is told to end."""

    def __init__(self, stop_at: float = float("inf")) -> None:
        self.seconds, self.stop_at = 0.0, stop_at

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> bool:
        self.seconds = max(self.seconds, min(self.seconds + seconds, self.stop_at))
        return self.seconds >= self.stop_at

    def pause(self, seconds: float) -> None:
        self.seconds += seconds


def settings(**changes: Any) -> LaunchSettings:
    values = {
        "step": "sft",
        "nodes": 2,
        "gpus_per_node": 4,
        "gpu_resource": "nvidia.com/gpu",
        "namespace": NAMESPACE,
        "runtime": "understudy-sft",
        "image": "registry.example.com/ml/train-python@sha256:" + "a" * 64,
        "queue": "scheduled",
        "priority": "understudy-scheduled",
        "timeout_seconds": 86400,
        "queue_timeout_seconds": 3600,
        "max_restarts": 1,
        "cpu": "8",
        "memory": "64Gi",
        "ephemeral_storage": "200Gi",
        "shared_memory": "16Gi",
        "node_selector": {"understudy.dev/pool": "gpu"},
        "tolerations": (Toleration(key="nvidia.com/gpu", value="present", effect="NoSchedule"),),
        "labels": {"understudy.dev/cost-center": "team-a"},
        "config_maps": (EnvironmentSource(name="understudy-settings", keys={"uri": "MLFLOW_TRACKING_URI"}),),
        "secrets": (EnvironmentSource(name="storage", keys={"AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY"}),),
        "env_names": ("MLFLOW_RUN_ID", "AWS_SECRET_ACCESS_KEY", "NOT_SET_HERE"),
    }
    return LaunchSettings.model_validate(values | changes)


def request() -> Request:
    return Request("sft", {"seed": 1}, {"dataset": DATASET, "start": None}, [PolicyRef])


LAUNCHER_ROLES = ("understudy-runner", "understudy-launcher", "understudy-preflight")


def rules_of(*role_names: str) -> list[dict[str, Any]]:
    """Rules of the Roles and ClusterRoles that k8s/ gives to the launcher's service account."""
    files = ["k8s/apps/base/platform/roles.yaml", "k8s/apps/components/several-nodes/roles.yaml"]
    objects = [item for file in files for item in yaml.safe_load_all((ROOT / file).read_text())]
    roles = [item for item in objects if item["kind"].endswith("Role") and item["metadata"]["name"] in role_names]
    assert len(roles) == len(role_names)
    return [rule for role in roles for rule in role["rules"]]


def runtime(step: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / f"k8s/infrastructure/runtimes/{step}.yaml").read_text())
    return found


@contextmanager
def cluster(clock: VirtualClock, now: Callable[[], float] | None = None) -> Iterator[KubernetesApi]:
    """A cluster with the objects of k8s/ that the launcher looks at, and its rights."""
    with KubernetesApi(now or clock.now, rules_of(*LAUNCHER_ROLES)) as api:
        for step in ("sft", "align"):
            api.cluster_objects["clustertrainingruntimes", f"understudy-{step}"] = runtime(step)
        for name in ("understudy-scheduled", "understudy-adhoc"):
            api.cluster_objects["workloadpriorityclasses", name] = {"metadata": {"name": name}}
        active = {"type": "Active", "status": "True", "reason": "Ready", "message": "ready"}
        for name in ("scheduled", "adhoc"):
            api.queues[name] = {"metadata": {"name": name}, "status": {"conditions": [active]}}
        yield api


class Attempt:
    """One launcher pod: what it says, what it is asked for, and how it ends."""

    def __init__(self, api: KubernetesApi, clock: VirtualClock, folder: Path, **changes: Any) -> None:
        self.api, self.clock = api, clock
        self.exchange = Exchange(str(folder / "launches"))
        self.asked, self.settings = request(), settings(**changes)
        self.name = job_name(self.settings.step, RUN_ID, self.asked)
        api.when_complete = self.succeed
        self.said: list[str] = []

    def succeed(self, job: Job) -> None:
        write_result(self.exchange, self.asked, [POLICY])

    def launcher(self, say: Callable[[str], None] | None = None, poll: float = 1) -> Launcher:
        job = train_job(self.name, self.exchange.uri, self.asked, self.settings, environment={"MLFLOW_RUN_ID": "m1"})
        cluster = Cluster(NAMESPACE, self.api.client())
        return Launcher(
            cluster,
            job,
            self.asked,
            self.settings,
            self.exchange,
            self.clock,
            say or self.said.append,
            Patience(poll),
        )

    def run(self) -> tuple[Record, ...]:
        return self.launcher().run()

    def heard(self, words: str) -> bool:
        return any(words in line for line in self.said)

    @property
    def verbs(self) -> list[str]:
        return [call.verb for call in self.api.calls if call.resource == "trainjobs"]
