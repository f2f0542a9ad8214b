from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from evaluation.gates import VALID

from understudy.errors import ConfigError
from understudy.evaluation.gate import load_gate

ROOT = Path(__file__).parents[2]


def write(tmp_path, **changes):
    path = tmp_path / "gate.yaml"
    path.write_text(yaml.safe_dump(VALID | changes))
    return path


def test_the_gate_at_the_root_is_valid_and_asks_what_its_comments_say():
    gate = load_gate(ROOT / "gate.yaml")
    assert (gate.confidence, gate.power, gate.alpha) == (0.95, 0.8, pytest.approx(0.05))
    assert gate.primary[0].metric == "judge:validity" and gate.primary[0].against == "champion"
    assert {rule.limit for rule in gate.guards} == {"margin", "relative_margin", "max_drift"}
    assert gate.no_champion == "compare_to_sft" and gate.provenance.allow_dirty_code is False


def test_the_example_of_the_docs_is_a_whole_gate_for_ones_own_judge(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/gate.md").read_text(), re.DOTALL)
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match="docs/gate.md has one"):
        load_gate(path)
    path.write_text(example)
    gate = load_gate(path)
    assert [rule.metric for rule in (*gate.primary, *gate.guards)] == ["judge:mine", "nll_per_character", "eos_rate"]
    assert (gate.no_champion, gate.primary[0].detect, gate.guards[1].margin) == ("compare_to_sft", 0.08, 0.05)


def test_all_problems_at_once_with_the_closest_names(tmp_path):
    rule = {"metric": "judge:q", "decoding": "tuned", "minimum_improvment": 0.1, "detect": 0.2}
    guards = [{"metric": "lenght_tokens", "decoding": "tuned", "max_drift": 0.2}, {"metric": "nll", "margn": 0.1}]
    with pytest.raises(ConfigError) as refused:
        load_gate(write(tmp_path, primary=[rule], guards=guards, confidence=0.4, powr=0.8))
    said = str(refused.value)
    assert "primary.0.minimum_improvment: unknown key; did you mean 'primary.0.minimum_improvement'?" in said
    assert "primary.0.minimum_improvement: missing" in said
    assert "unknown metric 'lenght_tokens'; did you mean 'length_tokens'?" in said
    assert "guards.1.margn: unknown key; did you mean 'guards.1.margin'?" in said
    assert "confidence: Input should be greater than 0.5 (given: 0.4)" in said
    assert "powr: unknown key; did you mean 'power'?" in said


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ({"metric": "nll", "margin": 0.1, "floor": 1.0}, "give exactly one of margin, .*; given: margin, floor"),
        ({"metric": "nll"}, "given: none"),
        ({"metric": "nll", "decoding": "tuned", "margin": 0.1}, "nll reads the expert's text and has no decoding"),
        ({"metric": "eos_rate", "margin": 0.1}, "eos_rate needs a decoding: tuned, T=1 or greedy"),
        ({"metric": "distinct_2", "decoding": "tuned", "margin": 0.1, "scale": "win_rate"}, "a win rate needs one per"),
        (
            {"metric": "nll", "relative_margin": 0.1, "standard_deviation": 1.0},
            "relative_margin uses what was measured",
        ),
        ({"metric": "judge:q", "decoding": "tuned", "margin": 0.1, "score_range": [1, 0]}, r"score_range \[1.0, 0.0\]"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(tmp_path, guard, said):
    with pytest.raises(ConfigError, match=said):
        load_gate(write(tmp_path, guards=[guard]))


def test_detect_must_exceed_the_minimum_and_rules_are_given_once(tmp_path):
    rule = {"metric": "judge:q", "decoding": "tuned", "minimum_improvement": 0.1, "detect": 0.1}
    with pytest.raises(ConfigError, match="detect 0.1 must exceed minimum_improvement 0.1"):
        load_gate(write(tmp_path, primary=[rule]))
    twice = [rule | {"detect": 0.2}, rule | {"detect": 0.3}]
    with pytest.raises(ConfigError, match=r"given twice: judge:q \(tuned\) against champion; keep the stricter"):
        load_gate(write(tmp_path, primary=twice))


def test_a_missing_or_odd_file_is_said_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match="does not exist. Name one with --gate FILE"):
        load_gate(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="holds list, not a mapping"):
        load_gate(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_gate(tmp_path / "bad.yaml")


def test_a_key_that_is_given_twice_is_refused_because_yaml_would_forget_the_first(tmp_path):
    path = write(tmp_path)
    for more in ("guards: []\n", "confidence: 0.51\n"):
        path.write_text(yaml.safe_dump(VALID) + more)
        name = more.partition(":")[0]
        with pytest.raises(
            ConfigError, match=rf"(?s)gate.yaml is not valid YAML: .*the key '{name}' stands twice.*line \d+"
        ):
            load_gate(path)
    path.write_text(yaml.safe_dump(VALID).replace("decoding: tuned", "decoding: tuned\n  decoding: greedy", 1))
    with pytest.raises(ConfigError, match="the key 'decoding' stands twice"):
        load_gate(path)


@pytest.mark.parametrize("key", ["detect", "minimum_improvement", "standard_deviation"])
def test_yes_is_no_number(tmp_path, key):
    rule = {"metric": "judge:q", "decoding": "tuned", "minimum_improvement": 0.1, "detect": 2.0, key: True}
    with pytest.raises(ConfigError, match=f"{key} is true, which is no number"):
        load_gate(write(tmp_path, primary=[rule]))
    with pytest.raises(ConfigError, match="margin is true, which is no number"):
        load_gate(write(tmp_path, guards=[{"metric": "eos_rate", "decoding": "tuned", "margin": True}]))


def test_a_file_that_cannot_be_read_at_all(tmp_path):
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    with pytest.raises(ConfigError, match="deep.yaml is not valid YAML: it is nested too deeply"):
        load_gate(tmp_path / "deep.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_gate(Path("/proc/self/mem"))
