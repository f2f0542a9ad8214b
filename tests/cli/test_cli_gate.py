"""`understudy model gate` on a report as evaluation writes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from evaluation.conftest import namespace
from evaluation.gates import VALID

from understudy import cli

ROOT = Path(__file__).parents[2]
NAMES = ("base", "sft", "aligned", "sft_longer", "champion")


def call(arguments: list[str]) -> int:
    # The group of commands reads sys.argv to tell whether only help is wanted.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["understudy", *arguments])
        return cli.call(arguments)


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a gate and a report of policies with these error rates."""

    def write(rules=None, **errors):
        result = namespace().result({name: errors.get(name, 0.05) for name in NAMES if name in (*errors, "sft")})
        policies = {name: f"sha-{name}" for name in errors}
        protocol = {"seed": 7, "dataset_md5": "d.dir", "policies": policies, "judges": {"no_oops": "c0de"}}
        report = tmp_path / "report.json"
        report.write_text(json.dumps(result.to_json() | {"protocol": protocol}, allow_nan=False))
        primary = {"metric": "judge:no_oops", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.15}
        guards = [
            {"metric": "nll_per_character", "relative_margin": 0.05},
            {"metric": "length_tokens", "decoding": "tuned", "max_drift": 0.25},
            {"metric": "distinct_2", "decoding": "tuned", "relative_margin": 0.3},
            {"metric": "eos_rate", "decoding": "tuned", "margin": 0.3},
        ]
        gate = tmp_path / "gate.yaml"
        gate.write_text(yaml.safe_dump(VALID | {"primary": [primary], "guards": guards} | (rules or {})))
        return [str(report), "--gate", str(gate)]

    return write


def test_a_better_model_passes_with_a_table(written, capsys):
    arguments = written(sft=0.1, aligned=0.01, champion=0.15)
    assert call(["model", "gate", *arguments]) == 0
    said = capsys.readouterr().out
    assert "Pass: aligned may replace champion." in said and "95% one-sided" in said
    assert call(["model", "gate", *arguments, "--json"]) == 0
    decision = json.loads(capsys.readouterr().out)
    assert decision["verdict"] == "pass" and decision["digests"]["champion"] == "sha-champion"
    assert [rule["verdict"] for rule in decision["rules"]] == ["pass"] * 5
    assert decision["rules"][0]["value"] > 0.15 and decision["rules"][0]["groups"] == 40


def test_a_narrow_screen_shows_every_name_and_number_whole(written, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    primary = {"metric": "judge:no_oops", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.1}
    call(["model", "gate", *written({"primary": [primary]}, sft=0.1, aligned=0.05, champion=0.06)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 * 4 + 1 and all(len(line) <= 60 for line in lines[:-1])
    assert lines[:2] == ["Not enough evidence (primary)", "  judge:no_oops (tuned) against champion"]
    assert lines[2].startswith("  +0.025, limits -0.0") and lines[2].endswith(", wanted above +0")
    assert lines[3].startswith("  80 prompts in 40 groups, ") and lines[3].endswith(" more would settle it")
    assert lines[4:6] == ["Pass (guard)", "  nll_per_character against champion"]


def test_a_refusal_is_json_on_stdout_and_words_on_stderr(written, capsys):
    absent = {"metric": "judge:no_opps", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.1}
    assert call(["model", "gate", *written({"primary": [absent]}, sft=0.1, aligned=0.05, champion=0.1), "--json"]) == 4
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["verdict"] == "refused" and found["headline"] in captured.err and found["rules"] == []
    assert "aligned has no judge:no_opps" in found["headline"]


def test_a_worse_model_ends_with_four_and_numbers(written, capsys):
    arguments = written(sft=0.1, aligned=0.15, champion=0.01)
    assert call(["model", "gate", *arguments, "--json"]) == 4
    captured = capsys.readouterr()
    assert "Fail: aligned may not replace champion; judge:no_oops (primary)" in captured.err
    decision = json.loads(captured.out)
    assert decision["rules"][0]["high"] < 0 and decision["rules"][0]["verdict"] == "fail"


def test_a_tie_says_how_many_more_prompts(written, capsys):
    ambitious = {"metric": "judge:no_oops", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.02}
    assert call(["model", "gate", *written({"primary": [ambitious]}, sft=0.1, aligned=0.06, champion=0.06)]) == 4
    assert "more prompts would settle it" in capsys.readouterr().err


def test_no_champion_accepts_and_a_policy_can_be_named(written, capsys):
    arguments = written(sft=0.1, aligned=0.05)
    assert call(["model", "gate", *arguments]) == 0
    said = capsys.readouterr().out
    assert "No rule applied: there is no champion, and gate.yaml asks nothing of a first one" in said
    assert "Pass" not in said and "one-sided" not in said
    assert call(["model", "gate", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "no_rule"
    assert call(["model", "gate", *arguments, "--champion", "sftt"]) == 4
    assert "The report is about aligned, sft, not about 'sftt'" in capsys.readouterr().err


def test_rules_about_what_was_not_measured_are_refused_without_a_champion_too(written, capsys):
    absent = {"metric": "judge:no_opps", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.1}
    assert call(["model", "gate", *written({"primary": [absent]}, sft=0.1, aligned=0.05)]) == 4
    assert "aligned has no judge:no_opps; did you mean 'judge:no_oops'?" in capsys.readouterr().err


def test_rubbish_is_no_first_champion_by_the_shipped_gate(written, tmp_path, capsys):
    shipped = (ROOT / "gate.yaml").read_text().replace("judge:validity", "judge:no_oops")
    for error, status, said in (
        (0.9, 4, "Fail: aligned may not become the first champion, compared with sft; judge:no_oops (primary)"),
        (0.01, 0, "Pass: aligned may become the first champion, compared with sft."),
    ):
        arguments = written(sft=0.15, aligned=error)
        gate = yaml.safe_load(shipped)
        gate["primary"][0]["standard_deviation"] = None  # 80 prompts are fewer than it plans
        gate["guards"] = gate["guards"][:2]
        (tmp_path / "gate.yaml").write_text(yaml.safe_dump(gate))
        assert call(["model", "gate", *arguments]) == status
        captured = capsys.readouterr()
        assert said in (captured.err if status else captured.out)


def test_reports_of_before_are_refused_and_typing_errors_are_said(written, tmp_path, capsys):
    arguments = written(sft=0.1, aligned=0.05)
    old = json.loads((tmp_path / "report.json").read_text())
    del old["protocol"], old["likelihood"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old/report.json").write_text(json.dumps(old))
    assert call(["model", "gate", str(tmp_path / "old"), *arguments[1:]]) == 4
    assert "The report has no protocol, likelihood: it was written by an older version" in capsys.readouterr().err
    assert call(["model", "gate", "./nowhere.json", *arguments[1:]]) == 2
    assert "There is no report at 'nowhere.json'" in capsys.readouterr().err


def test_without_a_report_it_plans_the_sample(written, capsys):
    primary = {"metric": "judge:no_oops", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.1}
    both = [primary | {"standard_deviation": 0.5}, primary | {"metric": "judge:b", "standard_deviation": 0.5}]
    needs = {}
    for needed in ("all", "any"):
        arguments = written({"primary": both, "primaries_needed": needed}, sft=0.1, aligned=0.05)
        assert call(["model", "gate", *arguments[1:], "--json"]) == 0
        needs[needed] = json.loads(capsys.readouterr().out)[0]["required_prompts"]
    # (1.645 + 0.842)^2 * 0.25 / 0.01 = 154.6 at 5%, (1.960 + 0.842)^2 * 25 = 196.2 at half of it; t adds a few.
    assert needs == {"all": 157, "any": 199}
