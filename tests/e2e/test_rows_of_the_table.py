"""Every row of the objectives' table, end to end through `understudy run`, by configuration alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.tiny import result_of, run_pipeline

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# Row numbers are those of docs/objectives.md. Elo (16) and the exact rows (17, 18) are no training method.
ROWS = {
    "1, 5: token NLL, reverse KL sequence": [],
    "2, 4, 8: occupancy NLL, reverse KL token, AIRL form": [
        "sft.objective=occupancy",
        "sft.absorbing=true",
        "align.level=token",
        "align.discriminator.form=airl",
    ],
    "3, 6: trajectory NLL, JS token": ["sft.objective=trajectory", "align.divergence=js", "align.level=token"],
    "7, 9: JS sequence, variational": ["align.divergence=js", "align.discriminator.loss=variational"],
    "9: forward KL by PPO": ["align.divergence=forward_kl", "align.policy_update=ppo"],
    "9: alpha 0.5 token, discounted": ["align.divergence=alpha:0.5", "align.level=token", "align.discount=0.9"],
    "10: self-play DPO": ["align.method=selfplay"],
    "11: self-play IPO": ["align.method=selfplay", "align.selfplay.loss=ipo"],
    "11: self-play KTO": ["align.method=selfplay", "align.selfplay.loss=kto"],
    "11: self-play SLiC": ["align.method=selfplay", "align.selfplay.loss=slic"],
    "12: iterative SFT": ["align.method=iterative_sft"],
    "13: RLHF": ["align.method=rlhf"],
    "14: Bradley-Terry": ["align.discriminator.loss=bradley_terry"],
    "15: Bradley-Terry, learned variance, token": [
        "align.discriminator.loss=bradley_terry_variance",
        "align.level=token",
    ],
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working directory for all rows, so that ingest and SFT run once."""
    return tmp_path_factory.mktemp("rows")


@pytest.mark.parametrize("row", ROWS)
def test_row_runs_end_to_end(row: str, workdir: Path) -> None:
    result = result_of(run_pipeline(workdir, *ROWS[row]))
    aligned = result["records"]["align"]["policy"]
    assert aligned["stage"] == "aligned" and aligned["parent_sha256"]
    lines = (Path(aligned["uri"]) / "history.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 3 and all(math.isfinite(value) for value in last.values())
    assert {"policy_loss", "policy_gradient_norm", "held_out_auc"} <= set(last)
    assert last["policy_gradient_norm"] > 0
    assert result["records"]["register"]["entry"]["alias"] == "challenger"
