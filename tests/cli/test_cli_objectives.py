"""`understudy objectives`: tables, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from understudy.cli.objectives import app
from understudy.errors import ConfigError
from understudy.objectives import policy_gradient


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_verify_passes_and_says_so() -> None:
    answer = call("verify", "--vocab", "3", "--horizon", "3", "--seed", "11", "--json")
    assert answer.exit_code == 0
    result = json.loads(answer.stdout)
    assert result["passed"] and result["failed"] == 0 and result["seed"] == 11
    assert {row["proof"] for row in result["rows"]} == {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
    assert all(row["error"] < row["bound"] and row["passed"] for row in result["rows"])


def test_verify_ends_with_1_and_names_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    right = policy_gradient.reward_to_go
    monkeypatch.setattr(policy_gradient, "reward_to_go", lambda *args, **kwargs: -right(*args, **kwargs))
    answer = call("verify", "--vocab", "3", "--horizon", "2")
    assert answer.exit_code == 1
    assert "FAILED" in answer.stdout and "Eq 17, 19 as printed diverge" in answer.stdout


@pytest.mark.parametrize("size", [("1", "5"), ("4", "1"), ("21", "2"), ("4", "40")])
def test_a_size_out_of_range_is_a_usage_error(size: tuple[str, str]) -> None:
    answer = call("verify", "--vocab", size[0], "--horizon", size[1])
    assert isinstance(answer.exception, ConfigError)
    assert f"--vocab {size[0]} --horizon {size[1]}" in str(answer.exception)


def test_list_names_every_row() -> None:
    names = [row["name"] for row in json.loads(call("list", "--json").stdout)]
    assert names[:5] == ["reverse_kl", "js", "forward_kl", "log_d", "alpha:<a>"]
    assert {"variational", "bradley_terry_variance", "occupancy", "kto"} <= set(names)


def test_show_draws_and_covering_rises_along_alpha(tmp_path: Path) -> None:
    out = tmp_path / "plots" / "modes.svg"
    path = json.loads(call("show", "--out", str(out), "--json").stdout)["alpha_path"]
    coverage, precision = ([item[key] for item in path] for key in ("coverage", "precision"))
    assert coverage == sorted(coverage) and precision == sorted(precision, reverse=True)
    assert coverage[0] < 0.7 and coverage[-1] > 0.99 and precision[0] > 0.95 and precision[-1] < 0.5
    assert "<svg" in out.read_text() and [item.name for item in out.parent.iterdir()] == ["modes.svg"]
    assert isinstance(call("show", "--out", "x.gif").exception, ConfigError)
