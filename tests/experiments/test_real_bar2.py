"""Bar 2's verdict: the bar holds, or the line that fails is named; of what is not there nothing is claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.real import bar2, folders
from experiments.real.__main__ import create_parser, main, settings_from
from experiments.real.bar2 import block, contests, scratch_table, verdict
from experiments.real.cell import Settings
from experiments.real.folders import RESULTS, kept, load_all
from experiments.real.report import pages, printed, summary
from experiments.real.study import Cells, Contender, Key, win_rate
from experiments.real.tasks import in_words, pretrained_overrides

PROMPTS = 80
OURS, SFT = "reverse_kl_ngrams_wide", "sft_more_last"
SHORT = ("--set", "align.discriminator.warmup_rounds=6")


def _settings(*options: str, weights: str = "/somewhere/smollm2") -> list[str]:
    return settings_from(create_parser().parse_args(["--model", weights, *options])).told


def _key(*options: str, task: str = "ansible", size: str = "2000") -> Key:
    return Key(task, size, ", ".join(_settings(*options)))


def _seeds(chance: float, auc: float | None, distinct_2: float, validation: float, num: int) -> dict[int, Any]:
    """Cells of one arm; at T=1 nobody is right, so that a number of that decoding would show."""
    draw = np.random.default_rng(round(chance * 1000))
    cells: dict[int, Any] = {}
    for seed in range(num):
        fields = {"lengths": [5] * PROMPTS, "clusters": list(range(PROMPTS)), "self_bleu": 70.0, "chrf": 30.0}
        tuned = fields | {"scores": (draw.random(PROMPTS) < chance).astype(float).tolist()}
        tuned |= {"auc": auc, "distinct_2": distinct_2}
        plain = fields | {"scores": [0.0] * PROMPTS, "auc": 0.99, "distinct_2": 0.9}
        cells[seed] = {
            "decodings": {"T=1": plain, "tuned": tuned},
            "validation": {"T=1": 0.0, "T=0.3": validation},
            "tuned": "T=0.3",
        }
    return cells


def _arms(
    ours: float = 0.8, auc: float | None = 0.6, distinct_2: float = 0.192, num: int = 5
) -> dict[str, dict[int, Any]]:
    """The best SFT has .5 valid, an AUC of .7, distinct-2 of .2; arms that are better on test rows were not chosen."""
    return {
        "sft": _seeds(0.9, 0.5, 0.9, 0.1, num),
        SFT: _seeds(0.5, 0.7, 0.2, 0.5, num),
        OURS: _seeds(ours, auc, distinct_2, 0.6, num),
        "reverse_kl_ngrams_wide_x3": _seeds(0.95, 0.5, 0.9, 0.2, num),
    }


def _lines(arms: dict[str, dict[int, Any]], key: Key | None = None) -> list[str]:
    return block({key or _key(*SHORT): arms}).splitlines()


def test_the_bar_holds_by_four_lines_with_their_numbers() -> None:
    arms = _arms()
    head, empty, wins, auc, variety, outcome = _lines(arms)
    assert (head, empty) == (
        "pretrained smollm2, all weights; align.discriminator.warmup_rounds=6, 5 seeds: reverse KL, sequence, by "
        "n-grams, 96 prompts a round (tuned) against SFT, 24 epochs more, last weights (tuned), each the best on "
        "validation prompts.",
        "",
    )
    found = win_rate(arms[OURS], "tuned", arms[SFT], "tuned")[0]
    assert found is not None and found.low > 0.5
    limits = f"{100 * found.value:.1f}% [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    assert wins.startswith(f"- wins by validity: {limits} of prompts, ties half (at equal length ")
    assert wins.endswith("; lower limit above 50%: **yes**")
    assert auc == (
        "- fresh classifier's AUC (n-grams of characters): 0.600 [0.600, 0.600], of SFT 0.700 [0.700, 0.700]: "
        "0.100 and 0.200 from 0.5; closer: **yes**"
    )
    assert variety == ("- distinct-2: 0.192, of SFT 0.200: ratio 0.960, fell by 4.0%; fell by at most 5%: **yes**")
    assert outcome == "- **Bar 2 holds**, by 5 seeds."


@pytest.mark.parametrize(
    ("changed", "fails", "said"),
    [
        ({"ours": 0.52}, "wins by validity", "lower limit above 50%: **no**"),
        ({"auc": 0.75}, "fresh classifier's AUC (n-grams of characters)", "0.250 and 0.200 from 0.5; closer: **no**"),
        ({"auc": 0.29}, "fresh classifier's AUC (n-grams of characters)", "0.210 and 0.200 from 0.5; closer: **no**"),
        ({"distinct_2": 0.189}, "distinct-2", "ratio 0.945, fell by 5.5%; fell by at most 5%: **no**"),
        ({"ours": 0.2, "distinct_2": 0.1}, "wins by validity, distinct-2", "fell by 50.0%; fell by at most 5%: **no**"),
    ],
)
def test_each_condition_can_fail_and_is_named(changed: dict[str, float], fails: str, said: str) -> None:
    lines = _lines(_arms(**changed))  # type: ignore[arg-type]
    assert lines[-1] == f"- **Bar 2 does not hold**: {fails}, by 5 seeds."
    failing = [line for line in lines if line.endswith("**no**")]
    assert len(failing) == len(fails.split(", ")) and failing[-1].endswith(said)


def test_a_win_rate_whose_limit_is_below_half_is_no_win() -> None:
    arms = _arms(ours=0.52)
    found = win_rate(arms[OURS], "tuned", arms[SFT], "tuned")[0]
    assert found is not None and found.low < 0.5 < found.high


def test_more_variety_is_no_fall() -> None:
    lines = _lines(_arms(distinct_2=0.21))
    assert lines[4].endswith("ratio 1.050, rose by 5.0%; fell by at most 5%: **yes**")
    assert lines[-1] == "- **Bar 2 holds**, by 5 seeds."


def test_what_is_not_known_leaves_the_bar_unmeasured_unless_another_line_fails() -> None:
    by_encoder = _arms()
    for arm, value in ((SFT, 0.7), (OURS, 0.6)):
        for cell in by_encoder[arm].values():
            cell["decodings"]["tuned"]["auc_minilm"] = value
    assert _lines(by_encoder)[3].startswith("- fresh classifier's AUC (MiniLM embeddings): 0.600")
    assert "0.100 and 0.200 from 0.5; closer: **yes**" in _lines(by_encoder)[3]
    assert (
        _lines(_arms(auc=None))[3]
        == "- fresh classifier's AUC (n-grams of characters): not known of every seed: unmeasured"
    )
    assert (
        _lines(_arms(auc=None))[-1]
        == "- **Bar 2 is unmeasured**: fresh classifier's AUC (n-grams of characters), by 5 seeds."
    )
    arms = _arms()
    arms[SFT][2]["decodings"]["tuned"]["auc"] = None
    assert _lines(arms)[-1] == "- **Bar 2 is unmeasured**: fresh classifier's AUC (n-grams of characters), by 5 seeds."
    assert _lines(_arms(auc=None, ours=0.2))[-1] == "- **Bar 2 does not hold**: wins by validity, by 5 seeds."


@pytest.mark.parametrize(("num", "seeds"), [(1, "one seed"), (2, "2 seeds")])
def test_few_seeds_decide_nothing(num: int, seeds: str) -> None:
    for chance in (0.95, 0.1):
        assert _lines(_arms(ours=chance, num=num))[-1] == (
            f"- **Bar 2 is unmeasured**: it takes at least 3 seeds, by {seeds}."
        )


def test_only_seeds_that_both_have_count() -> None:
    arms = _arms()
    del arms[OURS][4], arms[SFT][0]
    arms[OURS][0]["decodings"]["tuned"]["auc"] = arms[SFT][4]["decodings"]["tuned"]["auc"] = None
    found = verdict(arms)
    assert (found.num_seeds, found.holds) == (3, True)
    assert (found.ours, found.sft) == (Contender(OURS, "tuned"), Contender(SFT, "tuned"))


@pytest.mark.parametrize(
    "key",
    [
        Key("ansible", "2000"),
        _key(*SHORT, size="500"),
        _key(*SHORT, size="24"),
        _key(*SHORT, task="ansible_all", size="all"),
        _key("--lora"),
    ],
)
def test_cells_of_anything_else_leave_it_unmeasured(key: Key) -> None:
    (line,) = _lines(_arms(), key)
    assert line.startswith("**Bar 2 is unmeasured**: there are no cells of a pretrained policy, all weights trained,")


def test_no_cells_or_none_of_ours_or_of_sft_leave_it_unmeasured() -> None:
    for names in ([], [SFT], [OURS]):
        arms = {name: cells for name, cells in _arms().items() if name in names}
        assert block({_key(): arms} if arms else {}).startswith("**Bar 2 is unmeasured**: there are no cells")


def test_each_setting_has_a_verdict_of_its_own() -> None:
    cells: Cells = {_key(*SHORT): _arms(), _key(): _arms(ours=0.2), _key("--lora"): _arms()}
    parts = [part for part in block(cells).split("pretrained ") if part]
    assert [part.splitlines()[-1] for part in map(str.strip, parts)] == [
        "- **Bar 2 holds**, by 5 seeds.",
        "- **Bar 2 does not hold**: wins by validity, by 5 seeds.",
    ]
    assert list(contests(cells)) == [_key(*SHORT), _key()]


def test_it_says_of_real_cells_what_the_tables_say() -> None:
    arms = load_all([RESULTS])[Key("ansible", "2000")]
    said = block({_key(): arms}).splitlines()
    row = next(line for line in summary({Key("ansible", "2000"): arms}).splitlines() if line.startswith("| ansible"))
    _, _, sft, ours, wins, at_equal_length, *_ = row.split(" | ")
    assert f"{ours.split(':')[0]} against {sft.split(':')[0]}" in said[0]
    assert said[2].startswith(f"- wins by validity: {wins} of prompts, ties half (at equal length {at_equal_length});")
    assert said[-1].startswith(
        "- **Bar 2 does not hold**: wins by validity, fresh classifier's AUC (MiniLM embeddings), distinct-2"
    )


def test_the_conditions_are_told_of_policies_from_scratch_too() -> None:
    cells: Cells = {Key("ansible", "2000"): _arms(), Key("pick", "500"): _arms(), _key(*SHORT): _arms()}
    first, *others = scratch_table(cells).splitlines()[2:]
    assert (
        first.startswith("| ansible, 2,000 | ") and " | wins by validity | " in first and first.endswith(" | **yes** |")
    )
    assert [row.startswith("|  |  | ") for row in others] == [True, True]  # neither pick nor the pretrained


def test_the_page_and_what_is_printed_of_pretrained_cells_hold_the_verdict() -> None:
    cells: Cells = {_key(*SHORT): _arms()}
    for each in (cell for arm in cells[_key(*SHORT)].values() for cell in arm.values()):
        each |= {"nll": [1.0], "expert_tokens": [2]}
    assert pages(cells)["results.md"]["real-bar2"] == block(cells)
    assert printed(cells).endswith("\n\n" + block(cells))
    assert "## ansible, 2,000 demonstrations (pretrained smollm2, all weights; align" in printed(cells)
    scratch = {Key("ansible", "2000"): cells[_key(*SHORT)]}
    assert "Bar 2" not in printed(scratch) and "unmeasured" in pages(scratch)["results.md"]["real-bar2"]


def test_settings_of_pretrained_cells_are_told_by_the_name_of_their_weights(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "some.gguf").touch()
    told = _settings("--lora", "--set", "sft.epochs=5", weights=str(tmp_path / "small"))
    assert "model.path=small" in told and "model.gguf_file=some.gguf" in told
    assert in_words(", ".join(told)) == "pretrained small, adapters; sft.epochs=5"
    assert in_words(", ".join(_settings(weights="/x/y/small/"))) == "pretrained small, all weights"
    assert in_words("align.num_rounds=8, sft.epochs=2") == "align.num_rounds=8, sft.epochs=2"
    # What a policy is loaded from keeps its place.
    assert f"model.path={tmp_path}" in Settings(pretrained_overrides(tmp_path, False)).under


def _write(folder: Path, settings: list[str], size: int = 2000) -> None:
    folder.mkdir(parents=True)
    for arm, cells in _arms().items():
        for seed, cell in cells.items():
            named = {"task": "ansible", "size": size, "arm": arm, "seed": seed, "settings": settings}
            (folder / f"ansible-{size}-{arm}-{seed}.json").write_text(json.dumps(named | cell))


def test_cells_of_another_size_are_judged_where_it_is_named_and_the_size_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "cells", _settings(*SHORT), size=24)
    assert bar2.main([str(tmp_path / "cells")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("**Bar 2 is unmeasured**: ") and said.endswith("on Ansible at 2,000 demonstrations.\n")
    assert bar2.main(["--size", "24", str(tmp_path / "cells")]) == 0
    head, _, *verdict_lines = capsys.readouterr().out.splitlines()
    assert head == "Of 24 demonstrations, which are not the bar's 2,000:"
    assert verdict_lines == _lines(_arms())


def test_pages_take_the_folders_beside_the_results_and_refuse_the_same_cells_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    for name, settings in (("results", []), ("results-135M-short", _settings(*SHORT)), ("elsewhere", _settings())):
        _write(tmp_path / name, settings)
    (tmp_path / "results-135M-short" / "samples").mkdir()
    assert kept(results) == [results, tmp_path / "results-135M-short"]
    assert set(load_all(kept(results))) == {Key("ansible", "2000"), _key(*SHORT)}
    assert bar2.main([str(tmp_path / "elsewhere")]) == 0
    assert "- **Bar 2 holds**, by 5 seeds.\n" in capsys.readouterr().out
    monkeypatch.setattr(bar2, "kept", lambda: kept(results))
    assert bar2.main([]) == 0 and "warmup_rounds=6, 5 seeds" in capsys.readouterr().out
    _write(tmp_path / "results-copy", _settings(*SHORT, weights="elsewhere/smollm2"))
    assert bar2.main([]) == 1
    told = capsys.readouterr().err
    assert "results-135M-short and " in told and "results-copy both have cells of ansible, 2000, with the same" in told


def test_the_report_takes_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments import blocks

    taken: list[list[Path]] = []
    monkeypatch.setattr(folders, "load_all", lambda found: taken.append(found) or {})
    monkeypatch.setattr(blocks, "write_and_tell", lambda made: print(made["results.md"]["real-bar2"]))
    assert main(["--report"]) == 0
    assert taken == [kept()] and taken[0][0] == RESULTS and "**Bar 2 is unmeasured**" in capsys.readouterr().out
