"""Every row of the objectives' table by configuration alone: through `understudy run`, or through its step align."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.tiny import result_of, run_pipeline, tiny_params

from pipelines.arguments import arguments
from understudy.platform.local_run import environment
from understudy.platform.steps import align, from_kfp
from understudy.records import DatasetRef, PolicyRef

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("rows"),  # on two workers each would have a first run of its own
]

# Row numbers are those of docs/objectives.md. Elo (16) and the exact rows (17, 18) are no training method. Every SFT
# objective, method and kind of policy update once through the whole run.
WHOLE = {
    "1, 5: token NLL, reverse KL sequence": [],
    "2, 4, 8: occupancy NLL, reverse KL token, AIRL form": [
        "sft.objective=occupancy",
        "sft.absorbing=true",
        "align.level=token",
        "align.discriminator.form=airl",
    ],
    "3, 6: trajectory NLL, JS token": ["sft.objective=trajectory", "align.divergence=js", "align.level=token"],
    "9: forward KL by PPO": ["align.divergence=forward_kl", "align.policy_update=ppo"],
    "10: self-play DPO": ["align.method=selfplay"],
    "12: iterative SFT": ["align.method=iterative_sft"],
    "13: RLHF": ["align.method=rlhf"],
}
# What differs from these in align alone: that step, with what `understudy run` gives it, from the first run's SFT.
ALIGN_ALONE = {
    "7, 9: JS sequence, variational": ["align.divergence=js", "align.discriminator.loss=variational"],
    "9: alpha 0.5 token, discounted": ["align.divergence=alpha:0.5", "align.level=token", "align.discount=0.9"],
    "11: self-play IPO": ["align.method=selfplay", "align.selfplay.loss=ipo"],
    "11: self-play KTO": ["align.method=selfplay", "align.selfplay.loss=kto"],
    "11: self-play SLiC": ["align.method=selfplay", "align.selfplay.loss=slic"],
    "14: Bradley-Terry": ["align.discriminator.loss=bradley_terry"],
    "15: Bradley-Terry, learned variance, token": [
        "align.discriminator.loss=bradley_terry_variance",
        "align.level=token",
    ],
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working directory for all rows, so that ingest runs once, and SFT once for each of its objectives."""
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def first_run(workdir: Path) -> dict[str, Any]:
    """Records of a whole run with the preset as it is."""
    return dict(result_of(run_pipeline(workdir))["records"])


@pytest.mark.parametrize("row", WHOLE)
def test_row_runs_end_to_end(row: str, workdir: Path) -> None:
    records = result_of(run_pipeline(workdir, *WHOLE[row]))["records"]
    _trained(records["align"]["policy"])
    assert records["register"]["entry"]["alias"] == "challenger"


@pytest.mark.parametrize("row", ALIGN_ALONE)
def test_row_aligns_with_what_the_run_gives_its_step(
    row: str, workdir: Path, first_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny_params(*ALIGN_ALONE[row])
    for name, value in environment(params, workdir, "row", workdir / "runs" / "row").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    dataset = DatasetRef.from_json(first_run["ingest"]["dataset"])
    warm = PolicyRef.from_json(first_run["sft"]["policy"])
    policy, _ = align.run(from_kfp(arguments(params)["align_config"]), dataset, warm)
    _trained(dataclasses.asdict(policy))
    assert policy.parent_sha256 == warm.sha256


def _trained(aligned: dict[str, Any]) -> None:
    assert aligned["stage"] == "aligned" and aligned["parent_sha256"]
    lines = (Path(aligned["uri"]) / "history.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 3 and all(math.isfinite(value) for value in last.values())
    assert {"policy_loss", "policy_gradient_norm", "held_out_auc"} <= set(last)
    assert last["policy_gradient_norm"] > 0
