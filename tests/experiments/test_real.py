"""Real demonstrations: arms are what they say, held-out rows are held out, intervals pair, cells are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.families import random_policy

from experiments.real import cell as real_cell
from experiments.real import study as real_study
from experiments.real import tasks as real_tasks
from experiments.real.__main__ import main
from experiments.real.arms import ARMS, COMPUTE_OF
from experiments.real.cell import Cell, ClosedFormReward, Folders, Study
from experiments.real.measure import Chooser
from experiments.real.report import tables
from experiments.real.study import Contender, best_sft, judged, load_cells, mean, of_seeds, win_rate
from experiments.real.tasks import TASKS, Task, load, pretrained_overrides
from understudy.config import SplitsConfig, load_params
from understudy.data.withholding import is_withheld
from understudy.models.scalar_head import ScalarHead
from understudy.training.adversarial import AlignResult, composed, objective_from
from understudy.training.sft import SftResult

ROOT = Path(__file__).parents[2]
SPLITS = SplitsConfig(validation=0.1, test=0.1)
RESULTS = ROOT / "experiments/real/results"


def _params(task: Task, *overrides: str) -> Any:
    return load_params(ROOT / "params.yaml", (*task.overrides, *overrides))


def test_every_arm_of_the_comparison_is_there_and_its_params_are_valid() -> None:
    assert len(ARMS) == 17 and [name for name, arm in ARMS.items() if arm.role == "sft"] == [
        "sft",
        "sft_longer",
        "sft_longer_last",
        "sft_smoothed",
    ]
    for task in TASKS.values():
        pairs = {
            (composed(params.align)[0].divergence, composed(params.align)[0].level)
            for arm in ARMS.values()
            if arm.role == "ours" and (params := _params(task, *arm.overrides))
        }
        assert pairs == {
            (name, level) for name in ("reverse_kl", "js", "alpha:0.5", "forward_kl") for level in ("sequence", "token")
        }
    methods = {name: composed(_params(TASKS["pick"], *arm.overrides).align)[1] for name, arm in ARMS.items()}
    assert (methods["spin"], methods["iterative_sft"], methods["rlhf_ppo"]) == ("selfplay", "best_of_n", "ppo")
    assert _params(TASKS["pick"], *ARMS["sft_smoothed"].overrides).sft.label_smoothing == 0.1


def test_pretrained_weights_are_named_with_their_gguf_file_and_adapters(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()
    params = _params(TASKS["ansible"], *pretrained_overrides(tmp_path, lora=True))
    assert (params.model.init, params.model.path, params.model.gguf_file, params.model.lora.rank) == (
        "pretrained",
        str(tmp_path),
        "weights.gguf",
        16,
    )
    (tmp_path / "config.json").touch()
    assert _params(TASKS["debian"], *pretrained_overrides(tmp_path, lora=False)).model.gguf_file is None


@pytest.mark.parametrize("name", ["sort", "pick"])
def test_groups_are_held_out_and_seeds_differ_in_training_rows_only(name: str, tmp_path: Path) -> None:
    first, second = (load(TASKS[name], 500, seed, tmp_path, 200, SPLITS) for seed in (0, 1))
    assert (len(first.train), len(first.validation), len(first.test)) == (500, 100, 200)
    groups = [{row.group for row in rows} for rows in (first.train, first.validation, first.test)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert first.test == second.test and first.validation == second.validation
    assert len({row.id for row in first.train} & {row.id for row in second.train}) < 150
    larger = load(TASKS[name], 2000, 0, tmp_path, 200, SPLITS)
    assert larger.train[:500] == first.train


def _cell(scores: list[float | None], lengths: list[int], clusters: list[int], validation: float) -> dict[str, Any]:
    decoding = {"scores": scores, "lengths": lengths, "clusters": clusters}
    return {
        "decodings": {"T=1": decoding, "tuned": decoding},
        "validation": {"T=1": validation, "T=0.5": validation / 2},
        "tuned": "T=0.5",
    }


def _cells(chance: float, seeds: int = 4, prompts: int = 60, validation: float = 0.5) -> dict[int, dict[str, Any]]:
    draw = np.random.default_rng(round(chance * 100))
    return {
        seed: _cell((draw.random(prompts) < chance).astype(float).tolist(), [5] * prompts, list(range(prompts)), 0.5)
        for seed in range(seeds)
    }


def test_intervals_widen_with_seeds_that_disagree() -> None:
    prompts = 50
    agree = {seed: _cell([0.0, 1.0] * 25, [5] * prompts, list(range(prompts)), 0.5) for seed in range(5)}
    split = {seed: _cell([float(seed % 2)] * prompts, [5] * prompts, list(range(prompts)), 0.5) for seed in range(5)}
    close, wide = mean(judged(agree, "T=1")), mean(judged(split, "T=1"))
    assert close is not None and wide is not None
    assert (close.value, wide.value) == (0.5, 0.4)
    assert close.high - close.low < 0.6 < wide.high - wide.low
    assert close.low > 0.2 and wide.low == 0.0


def test_undecided_prompts_count_for_nobody() -> None:
    cells = {seed: _cell([1.0, None, 0.0, None], [1] * 4, [0, 1, 2, 3], 0.5) for seed in range(3)}
    found = mean(judged(cells, "T=1"))
    assert found is not None and (found.value, found.n) == (0.5, 6)


def test_win_rate_is_paired_and_its_mirror_is_one_minus_it() -> None:
    strong, weak = _cells(0.8), _cells(0.3)
    there, back = win_rate(strong, "T=1", weak, "T=1")[0], win_rate(weak, "T=1", strong, "T=1")[0]
    expected = np.mean(
        [
            0.5 + 0.5 * np.sign(a - b)
            for seed in strong
            for a, b in zip(
                strong[seed]["decodings"]["T=1"]["scores"], weak[seed]["decodings"]["T=1"]["scores"], strict=True
            )
        ]
    )
    assert there is not None and back is not None
    assert there.value == pytest.approx(expected) and there.value + back.value == pytest.approx(1)
    assert there.low > 0.5 > back.high
    itself = win_rate(strong, "T=1", strong, "T=1")[0]
    assert itself is not None and (itself.value, itself.low, itself.high) == (0.5, 0.5, 0.5)


def test_only_common_seeds_are_compared() -> None:
    strong, weak = _cells(0.8, seeds=4), _cells(0.3, seeds=2)
    found = win_rate(strong, "T=1", weak, "T=1")[0]
    assert found is not None and found.n == 120
    assert win_rate(_cells(0.8, seeds=0), "T=1", weak, "T=1") == (None, None)


def test_wins_that_come_with_length_alone_vanish_at_equal_length() -> None:
    draw, prompts = np.random.default_rng(1), 400
    longer = draw.integers(-20, 60, prompts)
    wins = draw.random(prompts) < 0.5 + 0.45 * np.tanh(longer / longer.std())
    ours = {0: _cell(wins.astype(float).tolist(), (longer + 100).tolist(), list(range(prompts)), 0.5)}
    theirs = {0: _cell([0.5] * prompts, [100] * prompts, list(range(prompts)), 0.5)}
    plain, controlled = win_rate(ours, "T=1", theirs, "T=1")
    assert plain is not None and controlled is not None
    assert plain.low > 0.55 and controlled.low < 0.5 < controlled.high


def test_the_interval_of_a_number_a_seed_is_students() -> None:
    found = of_seeds([1.0, 2.0, 3.0, None])
    assert found is not None and (found.value, found.n) == (2.0, 3)
    assert found.high - found.value == pytest.approx(4.3027 / 3**0.5, rel=1e-3)


def test_the_best_sft_is_chosen_on_validation_rows() -> None:
    arms = {"sft": {0: _cell([1.0], [1], [0], 0.3)}, "sft_longer": {0: _cell([0.0], [1], [0], 0.4)}}
    arms["reverse_kl_token"] = {0: _cell([1.0], [1], [0], 0.9)}
    assert best_sft(arms) == Contender("sft_longer", "T=1")


def test_the_closed_form_reward_is_the_log_ratio_so_far() -> None:
    sft, base = random_policy("llama"), random_policy("llama")
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.mul_(0.5)
    batch = sft.batch([[1, 2], [3]], [[4, 5, 6], [7]])
    found = ClosedFormReward(sft, base)(batch)[..., 0]
    ratio = (sft.response_logps(batch) - base.response_logps(batch)).detach()
    assert found[0].tolist() == pytest.approx([float(ratio[0, : n + 1].sum()) for n in range(3)], abs=1e-5)
    assert found[1, 0] == pytest.approx(float(ratio[1, 0]), abs=1e-5) and float(found.abs().max()) > 0.01


def test_the_chooser_takes_the_response_that_the_discriminator_likes_most() -> None:
    policy = random_policy("llama")
    discriminator = ScalarHead.copied_from(policy, 1, 0.0)
    torch.nn.init.normal_(discriminator.head.weight, generator=torch.Generator().manual_seed(0))
    objective = objective_from(_params(TASKS["pick"]).align)
    prompts, responses = [[1, 2]] * 3 + [[3]] * 3, [[4], [5], [6, 7], [8], [9, 4], [5]]
    with torch.no_grad():
        alone = [
            float(discriminator(policy.batch([p], [r]))[0, -1, 0]) for p, r in zip(prompts, responses, strict=True)
        ]
    chosen = Chooser(discriminator, objective, num=3)(policy, prompts, responses)
    assert chosen == [int(np.argmax(alone[:3])), 3 + int(np.argmax(alone[3:]))]


def test_withheld_demonstrations_are_for_alignment_and_for_the_longer_sft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[str]] = {}

    def trained(policy: Any, train: Any, validation: Any, config: Any, seed: int, loop: Any, passes: Any = None) -> Any:
        seen["sft" if passes is None else f"longer {passes}"] = {example.id for example in train}
        return SftResult(0.0, 0, 1, 1, 0.0)

    def aligned(models: Any, train: Any, *rest: Any) -> AlignResult:
        seen["align"] = {example.id for example in train}
        return AlignResult(1, None, None, 0, 0, 1, 0.0)

    monkeypatch.setattr(real_cell, "train_sft", trained)
    monkeypatch.setattr(real_cell, "align", aligned)
    monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", 800)
    more = ("sft.withheld_fraction=0.4", "align.demonstrations=withheld")
    study = Study(Folders(tmp_path / "results", tmp_path / "work"), more)
    (tmp_path / "results").mkdir()
    study.path(Cell(TASKS["pick"], 100, ARMS[COMPUTE_OF], 0)).write_text('{"compute_token_passes": 77}')
    params = load_params(ROOT / "params.yaml", (*TASKS["pick"].overrides, *more))
    rows = real_tasks.load(TASKS["pick"], 100, 0, tmp_path / "work", 8, params.data.splits)
    for arm in ("sft", "sft_longer", "js_sequence"):
        study._policy(Cell(TASKS["pick"], 100, ARMS[arm], 0), params, rows)
    withheld = {row.id for row in rows.train if is_withheld(row.group, 0.4)}
    everything = {row.id for row in rows.train}
    assert 20 < len(withheld) < 60
    assert seen == {"sft": everything - withheld, "longer 77": everything, "align": withheld}


def test_a_cell_that_is_there_is_not_run_again(tmp_path: Path) -> None:
    study = Study(Folders(tmp_path / "results", tmp_path / "work"))
    cell = Cell(TASKS["pick"], None, ARMS["spin"], 3)
    assert study.path(cell).name == "pick-all-spin-3.json"
    study.path(cell).parent.mkdir()
    study.path(cell).write_text('{"seconds": 1}')
    assert study.run(cell) == {"seconds": 1} and not (tmp_path / "work").exists()


@pytest.mark.slow
def test_a_smoke_run_keeps_cells_that_make_tables_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", 800)
    arms = ["sft", "sft_longer", "best_of_8", "closed_form"]
    monkeypatch.setattr(real_study, "RESAMPLES", 100)
    command = ["--smoke", "--tasks", "pick", "--seeds", "0", "--arms", *arms]
    command += ["--set", "sft.epochs=1", "--out", str(tmp_path / "cells"), "--work", str(tmp_path / "work")]
    assert main(command) == 0
    assert "| closed-form log-ratio reward |" in capsys.readouterr().out
    # The longer SFT asks for the compute of an arm that was not named.
    assert len(list((tmp_path / "cells").iterdir())) == len(arms) + 1
    cells = {path.name: json.loads(path.read_text()) for path in (tmp_path / "cells").iterdir()}
    assert all(len(cell["decodings"]["T=1"]["scores"]) == 16 for cell in cells.values())
    assert "nll" not in cells["pick-24-best_of_8-0.json"] and len(cells["pick-24-sft_longer-0.json"]["nll"]) == 16
    longer, named = (cells[f"pick-24-{name}-0.json"] for name in ("sft_longer", "reverse_kl_sequence"))
    assert longer["compute_token_passes"] == pytest.approx(named["compute_token_passes"], rel=0.5)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert main(command) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before


def test_the_committed_cells_make_the_tables_of_the_page() -> None:
    cells = load_cells(RESULTS)
    assert cells and all("sft" in arms for arms in cells.values())
    page = (ROOT / "docs/results.md").read_text()
    missing = [line for line in tables(cells).splitlines() if line and line not in page]
    assert not missing
