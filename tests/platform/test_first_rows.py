"""What preflight says of judges and lengths by the first demonstrations."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from understudy.config import load_params
from understudy.platform.steps import preflight
from understudy.platform.steps.first_rows import first_rows, first_rows_warnings

ROOT = Path(__file__).parents[2]
JUDGE = """
def never(prompt, response, reference):
    return None

def no(prompt, response, reference):
    return 0

def yes(prompt, response, reference):
    assert response == reference
    return 1

def graded(prompt, response, reference):
    return 0.2

def broken(prompt, response, reference):
    return 1 / 0
"""


@pytest.fixture
def ask(tmp_path: Path):
    """Warnings about rows with responses of some length, by a function of the judge above."""
    (tmp_path / "judge.py").write_text(JUDGE)

    def asked(function: str, response: str = "short", max_sampled_tokens: int = 128, count: int = 150) -> list[str]:
        source = tmp_path / "demonstrations.jsonl.gz"
        lines = [json.dumps({"prompt": f"p{index}", "response": response}) for index in range(count)]
        source.write_bytes(gzip.compress("\n".join(["not json", *lines]).encode()))
        target = f"{tmp_path / 'judge.py'}:{function}"
        judges = [{"name": "mine", "kind": "callable", "target": target}]
        overrides = [
            f"data.source={source}",
            f"evaluation.judges={json.dumps(judges)}",
            "evaluation.tuning_judge=mine",
        ]
        params = load_params(ROOT / "params.yaml", overrides)
        return first_rows_warnings(first_rows(params.data), params.evaluation, max_sampled_tokens)

    return asked


def test_a_judge_that_suits_the_demonstrations_is_not_mentioned(ask) -> None:
    assert ask("yes") == ask("graded") == []


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("never", "judge 'mine' decides about 0 of the experts' own first 100 responses"),
        ("no", "judge 'mine' says no to 100 of the experts' own first 100 responses"),
        ("broken", "judge 'mine' cannot score the experts' own responses: Judge 'mine' failed on prompt 0"),
    ],
)
def test_a_judge_that_does_not_is_told_before_training(ask, function: str, told: str) -> None:
    (warning,) = ask(function)
    assert warning.startswith(told)


def test_responses_that_alignment_could_not_sample_whole(ask) -> None:
    (warning,) = ask("yes", response="x" * 65, max_sampled_tokens=16)
    assert warning.startswith("100 of the first 100 responses have more than 64 characters")
    assert "align.rollout.max_response_tokens 16" in warning
    assert ask("yes", response="x" * 64, max_sampled_tokens=16) == []


def test_the_sources_own_names_of_fields_are_known(tmp_path: Path) -> None:
    source = tmp_path / "theirs.jsonl"
    source.write_text('{"input": "p", "output": "r"}\n')
    overrides = [f"data.source={source}", "data.fields={prompt: input, response: output}"]
    (row,) = first_rows(load_params(ROOT / "params.yaml", overrides).data)
    assert (row.prompt, row.response) == ("p", "r")


def test_a_source_without_rows_is_left_to_ingest(ask) -> None:
    assert ask("never", count=0) == []


def test_a_source_of_bad_rows_is_not_read_to_its_end(tmp_path: Path) -> None:
    source = tmp_path / "bad.jsonl"
    lines = ['{"input": "p"}'] * 1000 + ['{"prompt": "p", "response": "r"}']
    source.write_text("\n".join(lines))
    assert first_rows(load_params(ROOT / "params.yaml", [f"data.source={source}"]).data) == []
    source.write_text("\n".join(lines[1:]))
    assert len(first_rows(load_params(ROOT / "params.yaml", [f"data.source={source}"]).data)) == 1


def test_a_slow_judge_is_asked_for_some_seconds_only(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.platform.steps.first_rows._JUDGE_SECONDS", 0.0)
    (warning,) = ask("no")
    assert "says no to 1 of the experts' own first 1 responses" in warning


def test_preflight_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path / "run"))
    for name in ("MLFLOW_TRACKING_URI", "UNDERSTUDY_STORAGE_URI", "UNDERSTUDY_RUNNER_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    source = ROOT / "examples" / "tiny" / "demonstrations.jsonl"  # not Ansible's, whose judge params.yaml names
    config = load_params(ROOT / "params.yaml", [f"data.source={source}"]).model_dump(mode="json")
    assert preflight.run(config) == "ok"
    assert "Warning: judge 'validity' decides about 0 of the experts' own first 100" in capsys.readouterr().out
