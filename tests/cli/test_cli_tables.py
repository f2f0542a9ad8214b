"""What tables print is data: brackets in a name are neither markup nor gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from understudy.cli import gate, model, model_watch, objectives
from understudy.config import RegistryConfig
from understudy.evaluation.gate import RuleVerdict
from understudy.platform.registry import Version

NAME = "demo[v2]"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_the_list_of_models_shows_the_name_that_one_would_copy(capsys: pytest.CaptureFixture[str]) -> None:
    assert RegistryConfig(name=NAME, alias="challenger").name == NAME
    tags = {"stage": "[red]aligned", "pipeline_run": "[/]"}
    model._show_list([Version(NAME, "1", ["champion[x]"], tags, {})])
    assert capsys.readouterr().out.splitlines()[1].split() == [NAME, "1", "champion[x]", "[red]aligned", "[/]"]


@pytest.mark.parametrize("width", [9, 60, 80, 120])
def test_a_narrow_list_of_models_says_the_same_in_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    tags = {"stage": "aligned", "git_commit": "c" * 40, "git_dirty": "true", "dataset_md5": "d" * 32}
    tags["pipeline_run"] = "understudy-weekly-2026-11-30"
    versions = [Version("understudy-ansible", "12", ["challenger"], tags, {}), Version("tiny", "1", [], {}, {})]
    model._show_list(versions)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    if width == 120:
        said = ["understudy-ansible", "12", "challenger", "aligned", "cccccccc+", "dddddddd", tags["pipeline_run"]]
        assert [line.split() for line in lines[1:]] == [said, ["tiny", "1"]]
        assert lines[0].split("  ")[0] == "model" and lines[0].endswith("pipeline run")
        return
    assert lines == [
        "understudy-ansible/12",
        "  aliases       challenger",
        "  stage         aligned",
        "  commit        cccccccc+",
        "  dataset       dddddddd",
        "  pipeline run  understudy-weekly-2026-11-30",
        "tiny/1",
    ]


def test_the_gates_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    fields: dict[str, Any] = {
        "kind": "primary", "metric": f"judge:{NAME}", "decoding": "tuned[0]", "against": "[b]sft", "limit": "margin",
        "verdict": "pass", "value": 0.25, "low": 0.125, "high": 0.5, "bound": 0.0, "prompts": 40, "groups": 20,
        "more_prompts": None, "undecided": {}, "text": "",
    }  # fmt: skip
    rule: RuleVerdict = SimpleNamespace(**fields)  # type: ignore[assignment]
    decision = SimpleNamespace(rules=[rule], verdict="pass", headline="Pass.", confidence=0.95, correction="holm")
    gate._show(decision)  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert shown.splitlines()[:2] == ["Pass (primary)", f"  judge:{NAME} (tuned[0]) against [b]sft"]


def test_the_tables_of_watch_and_objectives(capsys: pytest.CaptureFixture[str]) -> None:
    metric = SimpleNamespace(metric=NAME, drift=True, distance=0.5, threshold=0.25, median=1.0, reference_median=2.0)
    model_watch._show([SimpleNamespace(number=1, metrics=[metric])])  # type: ignore[list-item]
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == [NAME, "yes", "0.500", "0.250"]
    row = SimpleNamespace(proof="(3)[a]", system="sys[b]", statement="f[c] = 0", error=0.0, bound=1.0, passed=True)
    Console(width=200).print(objectives._proof_table([row]))  # type: ignore[list-item]
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("(3)[a]", "sys[b]", "f[c] = 0", "ok"))
