"""What the page takes from elsewhere: the gate's decision, records for the tree, texts inside JSON."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from understudy.evaluation import browser
from understudy.evaluation.browser import MAX_BYTES, browser_data, embedded
from understudy.evaluation.gate_view import ask_gate
from understudy.evaluation.provenance_tree import provenance_tree
from understudy.evaluation.report import render_report
from understudy.evaluation.sides import pair_of

GATE = {
    "confidence": 0.95, "power": 0.8, "minimum_groups": 5, "max_undecided": 0.05, "primaries_needed": "all",
    "no_champion": "accept", "guards": [],
    "primary": [{"metric": "judge:no_oops", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.1}],
    "provenance": {"allow_dirty_code": False, "require_signature": False},
}  # fmt: skip
ERRORS = {"base": 0.9, "sft": 0.04, "aligned": 0.06, "champion": 0.03}


@pytest.fixture(scope="module")
def whole(fakes):
    return fakes.result(ERRORS)


@pytest.fixture
def result(whole):
    return copy.deepcopy(whole)


def report_of(result, champion=True):
    policies = {"aligned": "a" * 64, "sft": "b" * 64} | ({"champion": "c" * 64} if champion else {})
    protocol = {"seed": 7, "dataset_md5": "d", "policies": policies, "judges": {"no_oops": "e"}}
    return json.loads(json.dumps(result.to_json() | {"protocol": protocol}))


def gate_file(folder: Path, **changes) -> Path:
    path = folder / "gate.yaml"
    path.write_text(yaml.safe_dump(GATE | changes))
    return path


def test_the_decision_heads_the_page_with_a_row_per_rule(result, tmp_path):
    num = len(result.test)
    result.generated["aligned"]["tuned"].scores["no_oops"] = np.asarray([1.0] * num)
    result.generated["champion"]["tuned"].scores["no_oops"] = np.asarray([0.0, 1.0] * (num // 2))
    answer = ask_gate(gate_file(tmp_path), report_of(result))
    assert (answer.outcome, answer.decision.rules[0].value) == ("pass", 0.5)
    page = render_report(result, {}, {}, "x", answer)
    assert "<h1>Pass: aligned may replace champion.</h1>" in page and 'class="verdict gate-pass"' in page
    section = page[page.index('<section id="gate">') : page.index('<section id="sides">')]
    assert "primary: judge:no_oops (tuned) against champion" in section and "+0.5" in section
    assert answer.sha256[:12] in section and "Against SFT: " in page


def test_a_gate_that_refuses_or_cannot_be_read_is_said_and_costs_nothing(result, tmp_path):
    rule = {"metric": "judge:absent", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.1}
    answer = ask_gate(gate_file(tmp_path, primary=[rule]), report_of(result))
    assert answer.outcome == "refused" and "absent" in answer.refusal
    page = render_report(result, {}, {}, "x", answer)
    assert "<h1>The gate cannot decide on this report.</h1>" in page and '<section id="gate">' not in page
    (tmp_path / "gate.yaml").write_text("primary: [")
    assert ask_gate(tmp_path / "gate.yaml", report_of(result)).outcome == "refused"


def test_without_a_champion_the_page_says_what_the_gate_asks_of_a_first_one(result, tmp_path):
    assert ask_gate(tmp_path / "absent.yaml", report_of(result)) is None
    first = report_of(result, champion=False)
    page = render_report(result, {}, {}, "x", ask_gate(gate_file(tmp_path), first))
    assert f"<h1>{result.verdict.headline}</h1>" in page
    assert "The gate, without a champion: No rule applied: there is no champion, and gate.yaml asks nothing" in page
    asked = GATE["primary"][0] | {"metric": "judge:no_opps"}
    page = render_report(result, {}, {}, "x", ask_gate(gate_file(tmp_path, primary=[asked]), first))
    assert "aligned has no judge:no_opps; did you mean &#39;judge:no_oops&#39;?" in page


def test_a_report_that_compares_nothing_makes_no_first_champion(result, tmp_path):
    floor = {"metric": "eos_rate", "decoding": "tuned", "floor": 0.1}
    silent = {"verdict": {"outcome": "not_measured", "text": "Aligned and SFT cannot be compared: for a reason."}}
    first, said = report_of(result, champion=False) | silent, "Aligned and SFT cannot be compared: for a reason."
    for guards in ([], [floor]):
        answer = ask_gate(gate_file(tmp_path, guards=guards), first)
        assert answer.outcome == "refused" and said in answer.refusal and "--approve REASON" in answer.refusal
    # Where SFT stands in for the champion, the rules themselves say what was measured.
    assert ask_gate(gate_file(tmp_path, no_champion="compare_to_sft"), first).decision.champion is None
    assert ask_gate(gate_file(tmp_path), report_of(result) | silent).decision.champion == "champion"


def test_the_tree_goes_from_the_model_to_its_source_and_names_what_is_missing():
    records = {
        "dataset": {"md5": "d1.dir", "rows": 9, "splits": {"train": 9}, "source_sha256": "s1", "parent": "d0.dir"},
        "sft": {"stage": "sft", "sha256": "p1", "parent_sha256": None, "dataset_md5": "d1.dir", "code_sha256": "k"},
        "aligned": {"stage": "aligned", "sha256": "p2", "parent_sha256": "p1", "config_sha256": "f"},
        "champion": {"stage": "aligned", "sha256": "q2", "parent_sha256": "q1", "dataset_md5": "d9.dir"},
        "discriminator": {"sha256": "h", "held_out_auc": 0.6},
    }
    challenger, champion = provenance_tree({"Records and digests": records, "Versions": {"image": "i"}})
    assert [child.kind for child in challenger.children] == [
        "code", "configuration", "image", "parent policy", "discriminator",
    ]  # fmt: skip
    parent = challenger.children[3]
    dataset = parent.children[-1]
    assert parent.facts == [("stage", "sft"), ("sha256", "p1")] and dataset.facts[0] == ("md5", "d1.dir")
    assert [(child.kind, child.facts[0][1]) for child in dataset.children] == [
        ("parent dataset version", "d0.dir"), ("raw source", "s1"),
    ]  # fmt: skip
    said = [child.facts[-1][1] for child in champion.children[-2:]]
    assert said == ["its record is not in this report", "another one than this report's"]
    circular = {"a": records["sft"] | {"parent_sha256": "p1"}, "aligned": records["aligned"]}
    assert len(provenance_tree({"Records and digests": circular})) == 1
    assert provenance_tree({}) == [] and provenance_tree({"Records and digests": "text"}) == []


def test_json_inside_the_page_can_end_nothing_and_reads_back():
    content = ["</script><!--<script>", "\u2028\u2029", "\ud800 lone", "a & b", "שלום 👩\u200d🔧"]
    text = embedded(content)
    assert json.loads(text) == content and not re.search("[<>&\u2028\u2029\ud800-\udfff]", text)
    text.encode()


def test_long_texts_are_cut_until_all_fits_and_then_rows_are_left_out(result, monkeypatch):
    pair = pair_of(result)
    whole, rows = browser_data(result, pair, {})
    assert rows == 80 and len(whole) < MAX_BYTES
    first = [row[0] for row in json.loads(whole)["rows"]][: len(result.shown)]
    assert first == [result.test[index].id for index in result.shown]
    monkeypatch.setattr(browser, "TEXT_LIMITS", (4000, 30))
    monkeypatch.setattr(browser, "MAX_BYTES", 40_000)
    cut, rows = browser_data(result, pair, {})
    assert rows == 80 and json.loads(cut)["rows"][0][5][0][1] == len(result.test[result.shown[0]].response) - 30
    monkeypatch.setattr(browser, "MAX_BYTES", 10_000)
    cut, rows = browser_data(result, pair, {})
    assert 0 < rows < 80 and len(cut.encode()) <= 10_000


def test_names_are_never_formulas(result):
    name = "a$b_{$ <i>"
    for policy in result.generated.values():
        for generated in policy.values():
            generated.scores[name] = generated.scores.pop("no_oops")
    for decodings in result.metrics.values():
        for values in decodings.values():
            if "judge_no_oops" in values:
                values[f"judge_{name}"] = values.pop("judge_no_oops")
    result.judges, result.deciding_judge = [name], name
    ladder = [{"version": name, "rating": 1000.0, "low": None, "high": None, "matches": 0}]
    page = render_report(result, {}, {}, "x", None, {"ladder": ladder})
    assert page.count("a$b_{$ &lt;i&gt;") > 5 and "<i>aligned" not in page and "<i> " not in page
