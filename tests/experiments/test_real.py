"""Real demonstrations: arms are what they say, held-out rows are held out, intervals pair, cells are kept."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models.families import random_policy

from experiments import blocks
from experiments.real import cell as real_cell
from experiments.real import tasks as real_tasks
from experiments.real import wording
from experiments.real.__main__ import _arms, main, settings_from
from experiments.real.arms import ARMS
from experiments.real.cell import Cell, ClosedFormReward, Folders, Settings, Study
from experiments.real.folders import kept, load_all
from experiments.real.measure import Chooser
from experiments.real.report import briefly, choice, divergences, pages, sft_policies, summary, tables
from experiments.real.resampling import mean, of_seeds
from experiments.real.samples import gaps_table
from experiments.real.study import (
    DECODINGS,
    Contender,
    Key,
    best_of,
    best_sft,
    judged,
    load_cells,
    win_rate,
)
from experiments.real.tasks import TASKS, Task, load, pretrained_overrides
from understudy.config import SplitsConfig, load_params
from understudy.data.withholding import is_withheld
from understudy.evaluation.intervals import Interval
from understudy.models.scalar_head import ScalarHead
from understudy.platform.code_hash import code_sha256
from understudy.training.adversarial import AlignResult, objective_from
from understudy.training.methods import composed
from understudy.training.sft import SftResult

ROOT = Path(__file__).parents[2]
SPLITS = SplitsConfig(validation=0.1, test=0.1)


def _params(task: Task, *overrides: str) -> Any:
    return load_params(ROOT / "params.yaml", (*task.overrides, *overrides))


def test_every_arm_of_the_comparison_is_there_and_its_params_are_valid() -> None:
    assert len(ARMS) == 41 and [name for name, arm in ARMS.items() if arm.role == "sft"] == [
        "sft",
        "sft_longer",
        "sft_longer_last",
        "sft_smoothed",
        "sft_longer_ngrams",
        "sft_longer_ngrams_last",
        "sft_longer_ngrams_wide",
        "sft_longer_ngrams_wide_last",
        "sft_longer_ngrams_wide_x5_last",
        "sft_twice",
        "sft_longer_twice",
        "sft_8_more_last",
        "sft_more_last",
    ]
    for arm in ARMS.values():
        assert (arm.kind == "sft_longer") == bool(arm.keep) == ((arm.compute_of in ARMS) != (arm.epochs > 0))
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


def test_adapters_without_pretrained_weights_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--lora", "--arms", "sft"])
    assert "name their folder with --model" in capsys.readouterr().err


@pytest.mark.parametrize(("lora", "rate"), [(False, 3e-5), (True, 3e-4)])
def test_a_pretrained_policys_rate_and_what_is_set_stand_over_an_arms(tmp_path: Path, lora: bool, rate: float) -> None:
    options = argparse.Namespace(
        model=tmp_path, lora=lora, smoke=False, tasks=["ansible"], set=["align.discriminator.batch_pairs=7"]
    )
    study = Study(Folders(tmp_path, tmp_path), settings_from(options))
    align = load_params(
        ROOT / "params.yaml", study.overrides(Cell(TASKS["ansible"], 500, ARMS["reverse_kl_ngrams"], 0))
    ).align
    # Its table learns at its own rate, which has nothing to do with the policy's size.
    found = (align.learning_rate, align.discriminator.learning_rate, align.discriminator.batch_pairs)
    assert found == (rate, 1e-3, 7)


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


def test_all_of_ansible_is_every_collection_with_its_own_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples.ansible import extract

    asked: list[tuple[Path, Any, int | None]] = []

    def write(out: Path, wheel_folder: Path, collections: Any, max_chars: int | None, limit: int | None) -> None:
        asked.append((wheel_folder, collections, limit))
        out.mkdir(parents=True)
        for name in ("demonstrations.jsonl", "ansible_schema.json"):
            (out / name).write_text(json.dumps({"id": out.parent.name}))

    monkeypatch.setattr(extract, "write", write)
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", "")
    for name, folder in (("ansible", tmp_path), ("ansible_all", tmp_path / "every"), ("ansible", tmp_path)):
        assert TASKS[name].rows(tmp_path) == [{"id": folder.name}]
        assert os.environ["UNDERSTUDY_WORKDIR"] == str(folder)
    assert asked == [(tmp_path, extract.COLLECTIONS, None), (tmp_path, None, None)]


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
    assert itself is not None and itself.value == 0.5 and itself.low + itself.high == pytest.approx(1)


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


def test_the_best_of_ours_is_chosen_on_validation_rows_and_of_equals_the_first() -> None:
    arms = {"sft": {0: _cell([0.5], [1], [0], 0.5)}, "reverse_kl_sequence": {0: _cell([1.0], [1], [0], 0.4)}}
    arms["js_sequence"] = {0: _cell([0.0], [1], [0], 0.6), 1: _cell([0.0], [1], [0], 0.4)}
    arms["alpha_05_sequence"] = {0: _cell([1.0], [1], [0], 0.5)}
    assert best_of("ours", arms) == Contender("js_sequence", "T=1")
    assert best_of("baseline", arms) is None
    with pytest.raises(ValueError, match="run the arm `sft`"):
        best_sft({"js_sequence": arms["js_sequence"]})


def test_a_judge_is_not_the_mean_of_its_name() -> None:
    cells = _cells(0.5, seeds=2, prompts=4)
    for cell in cells.values():
        for made in cell["decodings"].values():
            made |= {"chrf": 39.4, "others": {"chrf": [0.2, 0.4, 0.6, 0.8]}}
    found = mean(judged(cells, "tuned", "chrf"))
    assert found is not None and (found.value, found.n) == (0.5, 8)
    itself = win_rate(cells, "T=1", cells, "tuned", "chrf")[0]
    assert itself is not None and itself.value == 0.5
    for cell in cells.values():
        del cell["decodings"]["T=1"]["others"]  # only the mean is left
    with pytest.raises(KeyError, match="others"):
        judged(cells, "T=1", "chrf")


def _written(folder: Path, arm: str, seed: int, chance: float, prompts: int = 40, **more: Any) -> None:
    cell = _cells(chance, seeds=1, prompts=prompts)[0] | {"task": "pick", "size": 500, "arm": arm, "seed": seed}
    cell |= {"overrides": [*TASKS["pick"].overrides, *ARMS[arm].overrides], "nll": [1.0], "expert_tokens": [2]} | more
    for made in cell["decodings"].values():
        made |= {"auc": 0.6, "distinct_2": 0.2, "self_bleu": 70.0, "chrf": 30.0}
    folder.mkdir(exist_ok=True)
    (folder / f"pick-500-{arm}-{seed}.json").write_text(json.dumps(cell))


def test_an_arm_is_compared_with_plain_sft_and_with_sft_of_its_own_compute(tmp_path: Path) -> None:
    # As good as plain SFT, better than the longer; by n-grams worse than plain SFT, level with SFT of its compute.
    for arm, chance in {"sft": 1.0, "reverse_kl_sequence": 1.0, "sft_longer": 0.0, "sft_longer_last": 1.0}.items():
        _written(tmp_path, arm, 0, chance)
    _written(tmp_path, "reverse_kl_ngrams", 0, 0.0)
    _written(tmp_path, "sft_longer_ngrams", 0, 0.0)
    lines = [line.split(" | ") for line in tables(load_cells(tmp_path)).splitlines()]
    found = {line[0].strip("| "): [each.split(" ")[0] for each in line[1:5]] for line in lines if len(line) == 5}
    assert found["**reverse KL**, sequence"] == ["50.0%", "50.0%", "50.0%", "100.0%"]
    assert found["reverse KL, sequence, by a table of n-grams"] == ["0.0%", "0.0%", "0.0%", "50.0%"]
    assert found["SFT, as much compute, best NLL"] == ["0.0%", "0.0%", "0.0%", ""] and "SFT" not in found


def test_cells_of_other_settings_are_not_compared(tmp_path: Path) -> None:
    _written(tmp_path, "sft", 0, 0.5)
    _written(tmp_path, "js_token", 0, 0.5)  # its own overrides are no other settings
    assert {key: list(arms) for key, arms in load_cells(tmp_path).items()} == {("pick", "500", ""): ["sft", "js_token"]}
    for arm in ("sft", "js_token"):
        _written(tmp_path, arm, 1, 0.5, prompts=30, settings=["align.num_rounds=8"])
    cells = load_cells(tmp_path)
    assert {key: list(arms["js_token"]) for key, arms in cells.items()} == {
        ("pick", "500", ""): [0],
        ("pick", "500", "align.num_rounds=8"): [1],
    }
    assert "## pick, 500 demonstrations (align.num_rounds=8)" in tables(cells)
    assert "| pick, 500 (align.num_rounds=8) | 1, 2 |" in summary(cells)
    assert "| open-ended | pick (align.num_rounds=8) | few: 500 | 1 | " in choice(cells)
    assert "| SFT | 0.600 | 0.600 |  |  | " in tables(cells)  # an interval over seeds needs two


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are made without a policy: one prompt, answered right."""
    linear = SimpleNamespace(model=torch.nn.Linear(1, 1))
    monkeypatch.setattr(Study, "_policy", lambda *_: (linear, None, {}))
    monkeypatch.setattr(real_cell, "sample_decodings", lambda *_: {"decodings": {}})
    monkeypatch.setattr(real_cell, "measure", lambda *_: {"T=1": {"scores": [1.0], "clusters": [0]}})


@pytest.mark.usefixtures("untrained")
def test_a_setting_that_an_arm_has_too_sets_no_arm_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = "align.discriminator.warmup_rounds=20"
    assert shared in ARMS["reverse_kl_ngrams"].overrides
    monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", 800)
    study = Study(Folders(tmp_path / "results", tmp_path / "work"), Settings(over=(shared,)))
    for arm in ("sft", "reverse_kl_ngrams"):
        made = study.run(Cell(TASKS["pick"], 100, ARMS[arm], 0))
        assert made["made_by"]["torch"] == torch.__version__ and made["made_by"]["code_sha256"] == code_sha256("align")
    found = {key: list(arms) for key, arms in load_cells(tmp_path / "results").items()}
    assert found == {("pick", "100", shared): ["sft", "reverse_kl_ngrams"]}


def test_cells_that_cannot_be_paired_are_refused_with_both_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _written(tmp_path, "sft", 0, 0.5)
    _written(tmp_path, "sft", 1, 0.5, prompts=30)
    assert main(["--report", "--out", str(tmp_path)]) == 1
    assert "pick-500-sft-1.json has 30 test prompts and pick-500-sft-0.json has 40" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"expert_tokens": [3]}, "has 3 tokens by experts and pick-500-sft-1.json has 2 tokens by experts"),
        (
            {"test_sha256": "b" * 64},
            f"has the test rows {'b' * 12} and pick-500-js_token-0.json has the test rows aaaa",
        ),
    ],
)
def test_cells_of_demonstrations_that_were_fetched_at_different_times_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], said: str
) -> None:
    _written(tmp_path, "js_token", 0, 0.5, test_sha256="a" * 64)
    _written(tmp_path, "sft", 1, 0.5)  # of before digests were kept
    assert main(["--report", "--out", str(tmp_path)]) == 0
    _written(tmp_path, "spin", 1, 0.5, **more)
    assert main(["--report", "--out", str(tmp_path)]) == 1
    assert f"pick-500-spin-1.json {said}" in capsys.readouterr().err


def test_cells_whose_prompts_are_grouped_otherwise_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _written(tmp_path, "sft", 0, 0.5)
    _written(tmp_path, "sft", 1, 0.5)
    path = tmp_path / "pick-500-sft-1.json"
    cell = json.loads(path.read_text())
    cell["decodings"]["T=1"]["clusters"][0] = 40
    path.write_text(json.dumps(cell))
    assert main(["--report", "--out", str(tmp_path)]) == 1
    assert "pick-500-sft-1.json has test prompts in 41 groups and pick-500-sft-0.json has" in capsys.readouterr().err


def test_cells_that_were_measured_differently_are_refused_with_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _written(tmp_path, "sft", 0, 0.5, overrides=["evaluation.temperatures=[0.5]", "sft.epochs=3"])
    _written(tmp_path, "spin", 0, 0.5, overrides=["evaluation.temperatures=[0.1]", "align.method=selfplay"])
    assert main(["--report", "--out", str(tmp_path)]) == 1
    said = "pick-500-spin-0.json was measured with evaluation.temperatures=[0.1] and pick-500-sft-0.json was measured "
    said += "with evaluation.temperatures=[0.5], with the same settings: the task has changed"
    assert said in capsys.readouterr().err


def test_a_second_fresh_classifier_is_told_where_every_seed_has_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        _written(tmp_path, "sft", seed, 0.5)
        _written(tmp_path, "spin", seed, 0.5)
    for arm, seeds in (("sft", [0]), ("spin", [0, 1])):
        for path in (tmp_path / f"pick-500-{arm}-{seed}.json" for seed in seeds):
            cell = json.loads(path.read_text())
            cell["decodings"]["T=1"]["auc_minilm"] = 0.75
            path.write_text(json.dumps(cell))
    last = tables(load_cells(tmp_path)).split("| arm |")[-1].split("\n\n")[0].splitlines()
    columns = {row.split(" | ")[0]: row.split(" | ") for row in last[2:]}
    at = last[0].split(" | ").index("by MiniLM") + 1
    assert columns["| SFT"][at] == "" and columns["| SPIN"][at] == "0.750 [0.750, 0.750]"


def test_samples_are_compared_with_the_best_sfts_seed_by_seed(tmp_path: Path) -> None:
    values = {"sft": {0: (0.5, 0.7), 1: (0.6, 0.7)}, "spin": {0: (0.4, 0.6), 1: (0.4, None)}}
    for arm, seeds in values.items():
        for seed, (distinct_2, by_encoder) in seeds.items():
            _written(tmp_path, arm, seed, 0.5)
            path = tmp_path / f"pick-500-{arm}-{seed}.json"
            cell = json.loads(path.read_text())
            for made in cell["decodings"].values():
                made |= {"distinct_2": distinct_2, "auc_minilm": by_encoder}
            path.write_text(json.dumps(cell))
    arms = load_cells(tmp_path)[Key("pick", "500")]
    for best in (Contender("sft", "T=1"), Contender("sft", "tuned")):
        heads, _, *rows = (line.split(" | ") for line in gaps_table(arms, best, "SFT's").splitlines())
        found = {row[0].strip("| "): dict(zip(heads[1:], row[1:], strict=True)) for row in rows}
        # -0.1 and -0.2: a mean of -0.15, and 12.706 * 0.0707 / sqrt(2) to both sides; MiniLM's is not known of seed 1.
        assert found["SPIN"]["distinct-2"] == "-0.150 [-0.785, +0.485]" and found["SPIN"]["AUC by MiniLM"] == ""
        assert ("SFT" in found) == (best.decoding == "T=1")


def test_a_share_has_limits_between_0_and_1() -> None:
    assert wording.percent(Interval(0.01, -0.02, 0.04, 9, 9)) == "1.0% [0.0, 4.0]"


def _numbers(value: Any) -> set[str]:
    """All intervals in a JSON, as pages write them."""
    if isinstance(value, list):
        return set().union(*map(_numbers, value))
    if not isinstance(value, dict):
        return set()
    found = set().union(*map(_numbers, value.values()))
    middle = value.get("value", value.get("win_rate"))
    if isinstance(middle, float) and isinstance(value.get("low"), float):
        limits = Interval(middle, value["low"], value["high"], 0, 0)
        found |= {wording.percent(limits), wording.shown(limits)}
    return found


def test_every_interval_in_the_pages_prose_is_in_a_table_or_in_raw_numbers() -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    made = "".join(re.findall("<!-- begin.*?<!-- end -->", page, re.DOTALL))
    made += (ROOT / "docs/results-real.md").read_text(encoding="utf-8")
    presets = [json.loads(path.read_text()) for path in (ROOT / "experiments/presets").glob("*.json")]
    known = _numbers(presets)
    prose = re.sub("<!-- begin.*?<!-- end -->", "", page[page.index("## Real demonstrations") :], flags=re.DOTALL)
    said = re.findall(r"-?[\d.]+%? \[-?[\d.]+, -?[\d.]+\]", " ".join(prose.split()))
    assert len(said) > 12
    assert [each for each in said if each not in made and each not in known] == []


def test_the_summary_and_the_rule_say_who_wins(tmp_path: Path) -> None:
    for seed in range(5):
        _written(tmp_path, "sft", seed, 0.3)
        _written(tmp_path, "spin", seed, 0.35)
        _written(tmp_path, "js_sequence", seed, 0.9)
    cells = load_cells(tmp_path)
    (row,) = summary(cells).splitlines()[2:]
    assert row.startswith("| pick, 500 | 5, 3 | SFT (T=1): 0.") and "| JS, sequence (T=1): 0." in row
    assert "| SPIN (T=1): 0." in row
    open_ended, *others = choice(cells).splitlines()[2:]
    sizes = ("few: 500", "2,000", "many: all")
    unknown = [(kind, size) for kind in ("open-ended", "close-ended") for size in sizes][1:]
    assert others == [f"| {kind} | | {size} | | not measured | |" for kind, size in unknown]
    won = "**JS, sequence (T=1)** | JS, sequence (T=1) against SFT (T=1): "
    assert open_ended.startswith(f"| open-ended | pick | few: 500 | 5 | {won}")
    (tmp_path / "pick-500-js_sequence-0.json").unlink()
    assert "5 seeds, from 4 to 5 for an arm." in tables(load_cells(tmp_path))


@pytest.mark.parametrize(
    ("chances", "said"),
    [
        ((0.9, 0.3), "**SFT (T=1)** | JS, sequence (T=1) against SFT (T=1): "),
        ((0.5, 0.51), "no difference shown | JS, sequence (T=1) against SFT (T=1): "),
        ((0.0, 0.001), "hardly a response is right | "),
    ],
)
def test_the_rule_names_sft_or_no_difference(tmp_path: Path, chances: tuple[float, float], said: str) -> None:
    for seed in range(5):
        _written(tmp_path, "sft", seed, chances[0])
        _written(tmp_path, "js_sequence", seed, chances[1])
    assert f"| pick | few: 500 | 5 | {said}" in choice(load_cells(tmp_path))


def test_what_is_talked_of_stands_in_a_short_table_with_the_best_sft(tmp_path: Path) -> None:
    for seed in range(5):
        for arm, chance in (("sft", 0.3), ("sft_smoothed", 0.9), ("spin", 0.3), ("js_sequence", 0.5)):
            _written(tmp_path, arm, seed, chance, validation={"T=1": 0.0, "T=0.5": chance})
    cells = load_cells(tmp_path)
    talked, over = briefly(cells[Key("pick", "500")]).split("\n\n")
    head, _, *rows = talked.splitlines()
    assert head.startswith("| arm | score | wins over best SFT | at equal length | chrF | distinct-2 | characters |")
    assert [row.split(" | ")[0] for row in rows] == ["| SFT", "| SFT, label smoothing 0.1", "| **JS**, sequence"]
    assert rows[1].split(" | ")[2] == "(itself)" and "%" in rows[2].split(" | ")[2]
    assert briefly({}) == "Not measured."
    # Ours at 0.5 over each SFT: better than one with 0.3, worse than one with 0.9.
    head, _, plain, smoothed = over.splitlines()
    assert head == "| JS, sequence (tuned) over | score | wins | at equal length |"
    wins = {row.split(" | ")[0]: float(row.split(" | ")[2].split("%")[0]) for row in (plain, smoothed)}
    assert wins["| SFT"] > 55 and wins["| SFT, label smoothing 0.1"] < 35


def test_divergences_by_ngrams_are_compared_with_the_best_sft_and_with_each_other(tmp_path: Path) -> None:
    for seed in range(5):
        for arm, chance in (("sft", 0.2), ("reverse_kl_ngrams_wide", 0.5), ("forward_kl_ngrams_wide", 0.9)):
            _written(tmp_path, arm, seed, chance)
    head, _, *rows = divergences(load_cells(tmp_path)[Key("pick", "500")]).splitlines()
    assert head.endswith("| wins over best SFT | at equal length | wins over reverse KL | at equal length |")
    reverse, forward = ([each.split("%")[0] for each in row.strip("| ").split(" | ")] for row in rows)
    assert (reverse[0], reverse[4]) == ("reverse KL, sequence, by n-grams, 96 prompts a round", "(itself)")
    assert float(forward[2]) > float(reverse[2]) > 55 and float(forward[4]) > 60
    assert divergences({}) == "Not measured."


def test_sft_arms_that_are_one_policy_are_counted_once(tmp_path: Path) -> None:
    _written(tmp_path, "reverse_kl_sequence", 0, 0.5)
    for arm, chance in (("sft", 0.3), ("sft_longer", 0.3), ("sft_longer_last", 0.9)):
        _written(tmp_path, arm, 0, chance)
    cells = load_cells(tmp_path)[Key("pick", "500")]
    assert sft_policies(cells) == [["sft", "sft_longer"], ["sft_longer_last"]]
    told = briefly(cells).split("\n\n")[1].splitlines()
    assert told[2].startswith("| SFT; the same policy: SFT, as much compute, best NLL | ") and len(told) == 4
    cells["sft_longer"][0]["decodings"]["tuned"]["lengths"][3] += 1
    assert len(sft_policies(cells)) == 3


def test_each_judge_has_a_table_unless_it_is_the_deciding_one(tmp_path: Path) -> None:
    def cell(arm: str, minilm: float) -> dict[str, Any]:
        made = _cells(0.5, seeds=1, prompts=20)[0] | {"nll": [1.0], "expert_tokens": [2]}
        for each in made["decodings"].values():
            each |= {"auc": 0.6, "distinct_2": 0.2, "self_bleu": 70.0, "chrf": 30.0}
            each["others"] = {"minilm": [minilm] * 20, "chrf": each["scores"]}
        return made

    arms = {name: {0: cell(name, score)} for name, score in (("sft", 0.4), ("js_sequence", 0.7), ("spin", 0.5))}
    for name in ("sft", "js_sequence"):
        for each in arms[name][0]["decodings"].values():
            each["others"]["module"] = [0.0] * 20
    made = tables({Key("debian", "500"): arms})
    asked = made.split("| valid, of the module that was asked for, T=1 |")[1].split("\n\n")[0]
    assert "| SFT | 0.000 " in asked and "| **JS**, sequence | 0.000 " in asked and "| SPIN |" not in asked
    assert "| MiniLM, T=1 |" in made and "| chrF, T=1 |" not in made and "| chrF to the expert, T=1 |" in made
    score = "0.700 [0.582, 0.751]"  # of 20 prompts that are all alike 17% may be otherwise
    assert f"| **JS**, sequence | {score} | {score} | 100.0% [83.2, 100.0] |" in made


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
        name = "sft" if passes is None else f"longer {passes}, {config.keep}"
        seen[name] = {example.id for example in train}
        return SftResult(0.0, 0, 0.0, 1, 1, 0.0)

    def aligned(models: Any, train: Any, *rest: Any) -> AlignResult:
        seen["align"] = {example.id for example in train}
        return AlignResult(1, None, None, 0, 0, 1, 0.0)

    monkeypatch.setattr(real_cell, "train_sft", trained)
    monkeypatch.setattr(real_cell, "align", aligned)
    monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", 800)
    more = ("sft.withheld_fraction=0.4", "align.demonstrations=withheld")
    study = Study(Folders(tmp_path / "results", tmp_path / "work"), Settings(over=more))
    (tmp_path / "results").mkdir()
    study.path(Cell(TASKS["pick"], 100, ARMS["reverse_kl_sequence"], 0)).write_text('{"compute_token_passes": 77}')
    params = load_params(ROOT / "params.yaml", (*TASKS["pick"].overrides, *more))
    rows = real_tasks.load(TASKS["pick"], 100, 0, tmp_path / "work", 8, params.data.splits)
    for arm in ("sft", "sft_longer", "sft_longer_last", "js_sequence"):
        study._policy(Cell(TASKS["pick"], 100, ARMS[arm], 0), params, rows)
    withheld = {row.id for row in rows.train if is_withheld(row.group, 0.4)}
    everything = {row.id for row in rows.train}
    assert 20 < len(withheld) < 60
    longer = {f"longer 77, {keep}": everything for keep in ("best_nll", "last")}
    assert seen == {"sft": everything - withheld, **longer, "align": withheld}


def test_the_discriminator_of_best_of_n_learns_as_often_as_an_aligned_policys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedules: list[Any] = []

    def aligned(models: Any, train: Any, held_out: Any, config: Any, *rest: Any) -> AlignResult:
        schedules.append((config.discriminator, config.num_rounds, config.rollout, config.learning_rate))
        return AlignResult(1, None, None, 0, 0, 1, 0.0)

    monkeypatch.setattr(real_cell, "align", aligned)
    monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", 800)
    study = Study(Folders(tmp_path / "results", tmp_path / "work"), Settings(over=("sft.epochs=1",)))
    rows = real_tasks.load(TASKS["pick"], 100, 0, tmp_path / "work", 8, SPLITS)
    for arm in ("best_of_8_ngrams", "reverse_kl_ngrams"):
        cell = Cell(TASKS["pick"], 100, ARMS[arm], 0)
        params = load_params(ROOT / "params.yaml", study.overrides(cell))
        _, choose, _ = study._policy(cell, params, rows)
        assert (choose is None) == (arm == "reverse_kl_ngrams")
    (best, ours) = schedules
    assert best[:3] == ours[:3] and best[0].warmup_updates_per_round > best[0].updates_per_round
    assert (best[3], ours[3]) == (1e-12, 2e-4)  # moves a weight by less than its float32 rounding


def test_a_cell_that_is_there_is_not_run_again(tmp_path: Path) -> None:
    study = Study(Folders(tmp_path / "results", tmp_path / "work"))
    cell = Cell(TASKS["pick"], None, ARMS["spin"], 3)
    assert study.path(cell).name == "pick-all-spin-3.json"
    study.path(cell).parent.mkdir()
    study.path(cell).write_text('{"seconds": 1}')
    assert study.run(cell) == {"seconds": 1} and not (tmp_path / "work").exists()


def _smoke(out: Path, work: Path, *arms: str) -> list[str]:
    # Even what a hardly trained policy says has a vowel now and then, so that a decoding other than T=1 is chosen.
    vowel, digit = "{name: vowel, kind: regex, target: '[aeiou]'}", "{name: digit, kind: regex, target: '[0-9]'}"
    judges = f"evaluation.judges=[{vowel}, {digit}]"
    command = ["--smoke", "--tasks", "pick", "--seeds", "0", "--set", judges, "--set", "evaluation.tuning_judge=vowel"]
    return [*command, "--out", str(out), "--work", str(work), "--arms", *arms]


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


def _fails(*_: Any) -> Any:
    raise AssertionError("a policy is not needed here")


def test_a_cell_that_is_sampled_and_then_measured_without_weights_is_the_cell_of_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", 800)
    arms = ("sft_longer", "sft", "best_of_8")
    in_one, in_two = tmp_path / "one", tmp_path / "two"
    assert main(_smoke(in_one, tmp_path / "work-one", *arms)) == 0
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(real_cell, "measure", _fails)
        assert main([*_smoke(in_two, tmp_path / "work", *arms), "--sample-only"]) == 0
        assert capsys.readouterr().out == "" and not _files(in_two)
        assert {path.name for path in in_one.iterdir()} == set(_files(in_two / "samples"))  # and the arm of its compute
        patched.setattr(real_cell, "create_policy", _fails)
        patched.setattr(real_cell, "load_policy", _fails)
        assert main([*_smoke(in_two, tmp_path / "work", *arms), "--sample-only"]) == 0
    monkeypatch.setattr(real_cell, "create_policy", _fails)
    monkeypatch.setattr(real_cell, "load_policy", _fails)
    # On another machine, which has other weights or none; what no one asks for stays unmeasured.
    command = [*_smoke(in_two, tmp_path / "elsewhere", *arms), "--model", str(tmp_path / "none")]
    assert main(command) == 0 and "| SFT |" in capsys.readouterr().out
    found, wanted = _files(in_two), _files(in_one)
    assert set(wanted) - set(found) == {"pick-24-reverse_kl_sequence-0.json"} and len(found) == len(arms)
    for name, cell in found.items():
        assert cell.pop("seconds") > 0 and wanted[name].pop("seconds") > 0
        assert list(cell.items()) == list(wanted[name].items())
    assert {cell["tuned"] for cell in found.values()} > {"T=1"}
    assert found["pick-24-best_of_8-0.json"]["num_skipped"] == 0
    before = {path: path.stat().st_mtime_ns for path in in_two.rglob("*.json")}
    assert main([*command, "--sample-only"]) == 0
    assert {path: path.stat().st_mtime_ns for path in in_two.rglob("*.json")} == before


def test_an_sft_policy_is_not_taken_for_that_of_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(*_: Any) -> SftResult:
        trained.append(1)
        return SftResult(0.0, 0, 0.0, 1, 1, 0.0)

    monkeypatch.setattr(real_cell, "train_sft", train)
    study, cell = Study(Folders(tmp_path / "results", tmp_path / "work")), Cell(TASKS["pick"], 100, ARMS["sft"], 0)
    params = load_params(ROOT / "params.yaml", study.overrides(cell))
    folders = []
    for num_rows in (800, 800, 900):  # a source that has grown, as package lists do
        monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", num_rows)
        folders.append(study._sft(cell, params, study._rows(cell, params))[0])
    assert folders[0] == folders[1] != folders[2] and len(trained) == 2


@pytest.mark.usefixtures("untrained")
def test_a_cell_keeps_which_rows_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    for name, num_rows, seed in (("one", 800, 0), ("other seed", 800, 1), ("grown", 900, 0)):
        monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", num_rows)
        study = Study(Folders(tmp_path / name, tmp_path / "work"))
        made[name] = study.run(Cell(TASKS["pick"], 100, ARMS["sft"], seed))
    assert made["one"]["test_sha256"] == made["other seed"]["test_sha256"] != made["grown"]["test_sha256"]
    assert made["one"]["train_sha256"] != made["other seed"]["train_sha256"]


def test_arms_of_the_table_are_those_that_it_has_of_a_task_and_size() -> None:
    few, many = _arms(["table"], "ansible", 500), _arms(["table"], "ansible_all", None)
    assert {"sft", "js_token", "rlhf_ppo"} <= set(few) and "reverse_kl_ngrams" not in few
    assert "reverse_kl_ngrams_wide" in many and "reverse_kl_ngrams_wide_x3" not in many
    assert _arms(["table", "reverse_kl_ngrams"], "ansible", 500) == [*few, "reverse_kl_ngrams"]
    assert _arms(["js_token", "sft"], "ansible", 500) == ["sft", "js_token"]
    with pytest.raises(SystemExit, match="No table has arms of debian at all; name some with --arms"):
        main(["--tasks", "debian", "--sizes", "all", "--arms", "table"])


def test_samples_of_other_test_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", 800)
    study = Study(Folders(tmp_path / "results", tmp_path / "work"))
    cell = Cell(TASKS["pick"], 100, ARMS["sft"], 0)
    sampled = {"overrides": study.overrides(cell), "test_sha256": "of others", "sample_seconds": 1.0, "decodings": {}}
    study.samples_path(cell).parent.mkdir(parents=True)
    study.samples_path(cell).write_text(json.dumps(sampled))
    with pytest.raises(ValueError, match=r"pick-100-sft-0.json: its samples answer other test rows"):
        study.run(cell)
    assert not study.path(cell).exists()


@pytest.mark.slow
def test_a_smoke_run_keeps_cells_that_make_tables_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_tasks, "_ARITHMETIC_ROWS", 800)
    arms = ["sft", "sft_longer", "best_of_8", "closed_form"]
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


@pytest.fixture(scope="module")
def committed() -> Any:
    return load_all(kept())


def test_the_committed_cells_make_the_blocks_of_both_pages(committed: Any) -> None:
    assert committed and all("sft" in arms for arms in committed.values())
    for name, made in pages(committed).items():
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert blocks.filled(text, made) == text, f"docs/{name}: run `python -m experiments.real --report`"


def test_by_ngrams_every_sft_is_beaten_in_form_alone_where_demonstrations_are_many(
    committed: Any,
) -> None:
    wins = set()
    for key, arms in ((key, arms) for key, arms in committed.items() if not key.settings):
        best = best_sft(arms)
        judges = [judge for judge in ("scores", "minilm", "chrf") if judge == "scores" or judge in _others(arms)]
        for arm in (name for name in arms if ARMS[name].role == "ours"):
            for decoding in DECODINGS:
                for judge in judges:
                    found = win_rate(arms[arm], decoding, arms[best.arm], best.decoding, judge)
                    for kind, each in zip(("plain", "at equal length"), found, strict=True):
                        if each is None or each.low > 0.5:
                            wins.add((key.task, arm, decoding, judge, kind))
    assert wins == {
        ("ansible_all", f"{divergence}_ngrams_wide", "tuned", "scores", "plain")
        for divergence in ("reverse_kl", "forward_kl")
    }
    arms = next(arms for key, arms in committed.items() if key.task == "ansible_all")
    policies = sft_policies(arms)
    assert (len(policies), sum(map(len, policies))) == (7, 9)
    for divergence, beaten in {"forward_kl": [7, 5], "reverse_kl": [6, 3], "js": [5, 5]}.items():
        over = [win_rate(arms[f"{divergence}_ngrams_wide"], "tuned", arms[name], "tuned") for name, *_ in policies]
        assert [sum(bool(each and each.low > 0.5) for each in kind) for kind in zip(*over, strict=True)] == beaten


def _others(arms: dict[str, dict[int, dict[str, Any]]]) -> set[str]:
    every = [cell["decodings"]["T=1"].get("others", {}) for cells in arms.values() for cell in cells.values()]
    return set.intersection(*map(set, every))
