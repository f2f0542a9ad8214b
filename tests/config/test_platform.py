"""What Kubernetes would refuse, or take and do something else with, is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.config import load_params
from understudy.errors import ConfigError

PARAMS = Path(__file__).parents[2] / "params.yaml"

REFUSED = {
    "namespace=Üser": "is not a name",
    "namespace=" + "a" * 64: "at most 63 characters",
    "pull_secret=a..b": "is not a name",
    "pull_secret=" + "a" * 254: "is not a name",
    "scheduled.local_queue=fast.lane": "is not a name as Kubernetes has it for this",
    "steps.sft.memory=0": "is not a quantity",
    "steps.sft.cpu=0.0": "is not a quantity",
    "steps.sft.memory=64 GB": "is not a quantity",
    "steps.sft.memory=١Gi": "is not a quantity",  # a digit, but not to Kubernetes
    "steps.sft.gpu_resource=gpu": "is not a resource such as nvidia.com/gpu",
    "steps.sft.gpus=2.5": "valid integer",
    "steps.sft={gpus: 0, nodes: 2}": "several nodes need at least one GPU each",
    "labels={team: aöb}": "is not a label's value",
    "labels={team: " + "x" * 64 + "}": "is not a label's value",
    "labels={team: 7}": "valid string",
    "labels={kueue.x-k8s.io/queue-name: fast}": "which queues, policies or controllers go by",
    "steps.ingest.labels={kueue.x-k8s.io/queue-name: fast}": "which queues, policies or controllers go by",
    "steps.sft.labels={understudy.dev/step: other}": "understudy.dev/step",
    "env={UNDERSTUDY_LAUNCH: x, UNDERSTUDY_RUN_ID: y}": "states UNDERSTUDY_LAUNCH, UNDERSTUDY_RUN_ID",
    "env={A: 1}": "valid string",
    "env={AWS_SECRET_ACCESS_KEY: x}": "put it into a Secret",
    "env={AWS_REGION: eu}": "step preflight gets AWS_REGION from several of env, config_maps and secrets",
    "steps.sft.secrets=[{name: s, keys: {a: AWS_ACCESS_KEY_ID}}]": "step sft gets AWS_ACCESS_KEY_ID from several",
    "secrets=[{name: s, keys: {}}]": "at least 1 item",
    "steps.nosuch.gpus=1": "unknown key",
    "steps.sft.timeout_seconds=2147483648": "less than or equal to 2147483647",
    "steps.ingest.timeout_seconds=99999999999999": "less than or equal to 2147483647",
    "steps.sft.gpus=2147483648": "less than or equal to 2147483647",
    "steps.align.nodes=2147483648": "less than or equal to 2147483647",
    "max_restarts=-1": "greater than or equal to 0",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_a_cluster_would_not_take_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="platform") as refused:
        load_params(PARAMS, [f"platform.{override}"])
    assert REFUSED[override] in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "namespace=" + "a" * 63,
        "pull_secret=a.b-c",
        "steps.sft.memory=0.5Gi",
        "steps.sft.gpu_resource=nvidia.com/mig-1g.5gb",
        "labels={understudy.dev/cost-center: Team_A.1}",
        "env={UNDERSTUDY_ACCELERATE: fsdp}",
    ],
)
def test_what_a_cluster_takes_is_taken(override: str) -> None:
    load_params(PARAMS, [f"platform.{override}"])
