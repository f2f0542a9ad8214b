"""Which discriminator tells expert from policy: halves do not meet, cells are kept, the page is as they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.families import random_policy

from experiments import blocks
from experiments.discriminators import study
from experiments.discriminators.__main__ import RESULTS, main
from experiments.discriminators.report import pages, table
from experiments.discriminators.study import KINDS, LEARNED_FROM, Setting, ToldReader, load_results
from understudy.models.trunk_reader import TrunkReader


def test_the_told_reader_alone_knows_how_likely_a_token_was() -> None:
    policy = random_policy("llama")
    batch = policy.batch([[5, 6]], [[7, 8, 9]])
    seen = policy.read(batch)
    changed = replace(seen, logp_BT=seen.logp_BT - 1.0)
    for kind, told in ((TrunkReader, False), (ToldReader, True)):
        torch.manual_seed(0)
        reader = kind(policy, num_outputs=1, num_layers=1, width=32, dropout=0.0)
        torch.nn.init.normal_(reader.head.weight)
        outputs = [reader(replace(batch, seen=told_of)) for told_of in (seen, changed)]
        assert torch.equal(*outputs) is not told


@pytest.mark.slow
def test_a_cell_has_every_kind_and_half_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(study.SETTINGS, "pick", Setting("pick", 24, 5, 4))
    command = ["--tasks", "pick", "--seeds", "0", "--out", str(tmp_path / "cells"), "--work", str(tmp_path / "work")]
    assert main(command) == 0
    (cell,) = load_results(tmp_path / "cells")
    assert set(cell["auc"]) == {f"{kind}, {name}" for kind in KINDS for name in LEARNED_FROM}
    assert all(len(aucs) == 1 and 0 <= aucs[0] <= 1 for aucs in cell["auc"].values())
    assert cell["nll"]["seen"] < cell["nll"]["held out"]
    shown = capsys.readouterr().out
    assert shown.count("| pick, 24 + 24 | 1 |") == len(KINDS) * len(LEARNED_FROM) + 1
    (path,) = (tmp_path / "cells").iterdir()
    before = path.stat().st_mtime_ns
    assert main(command) == 0 and path.stat().st_mtime_ns == before
    monkeypatch.setitem(study.SETTINGS, "pick", Setting("pick", 24, 5, 4, temperature=0.5))
    assert main(command) == 1 and path.stat().st_mtime_ns == before
    assert "pick-0.json: made with other settings. Remove them and run this again." in capsys.readouterr().err


def test_means_are_over_seeds() -> None:
    keys = [f"{kind}, {name}" for kind in KINDS for name in LEARNED_FROM]
    cells = [
        {
            "task": "pick",
            "half": 500,
            "seed": seed,
            "settings": {"temperature": 0.5},
            "auc": dict.fromkeys(keys, [0.5, 0.5 + seed / 10]),
            "valid": 0.1 * seed,
            "ranks": dict.fromkeys(keys, {"auc": None, "within": 0.6, "best": 0.3}),
            "seconds": dict.fromkeys(keys, 2.0 + seed),
        }
        for seed in (1, 3)
    ]
    line = next(line for line in table(cells).splitlines() if "the same, told" in line)
    assert line.startswith("| pick, 500 + 500 | 2 |") and "| 0.700 [" in line
    assert line.endswith("|  | 0.600 [0.600, 0.600] | 0.300 [0.300, 0.300] | 4 |")
    assert "none: one sample, T=0.5 | | | | | | 0.200 [" in table(cells)


def test_ranks_by_hand() -> None:
    # Within the first prompt the valid one wins 1 of 2 pairs, in the second 2 of 2; the third has no valid sample.
    score_PK = torch.tensor([[0.3, 0.2, 0.5], [0.9, 0.8, 0.1], [0.0, 0.6, 0.7]])
    valid_PK = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
    rows = torch.arange(3).repeat(20)
    found = study.ranks(score_PK[rows], valid_PK[rows])
    # Over all pairs: 0.3 beats 0.2, 0.1 and 0.0; 0.9 and 0.8 beat all six: 15 of 18.
    assert found == {"auc": 0.8333, "within": 0.75, "best": 0.3333}
    assert study.ranks(score_PK, valid_PK) == {"auc": None, "within": None, "best": 0.3333}


def test_the_page_is_what_the_cells_say() -> None:
    text = (blocks.DOCS / "results.md").read_text(encoding="utf-8")
    cells = load_results(RESULTS)
    assert cells and all(json.loads(study.as_text(cell)) == cell for cell in cells)
    wanted = blocks.filled(text, pages(cells)["results.md"])
    assert wanted == text, "run `python -m experiments.discriminators --report`"
