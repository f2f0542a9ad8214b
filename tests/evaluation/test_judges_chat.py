"""The chat judge against a server that enforces the protocol."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from support.chat_server import KEY, chat_server

from understudy.config import JudgeConfig, section_sha256
from understudy.errors import ConfigError, ServiceUnreachable
from understudy.evaluation.judges import RegexJudge, load_judge
from understudy.evaluation.judges_chat import verdict_of


def longer(question, a, b):
    winner = "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"
    return json.dumps({"verdict": winner})


@pytest.fixture
def served(monkeypatch, tmp_path):
    monkeypatch.setenv("CHAT_KEY", KEY)
    with chat_server(longer) as server:

        def judge(cache=tmp_path / "cache", **changes):
            chat = {"model": "m", "api_key_env": "CHAT_KEY", "max_attempts": 3} | changes
            made = load_judge(JudgeConfig(name="chat", kind="chat", target=server.url, chat=chat), cache=cache)
            made.waits = []
            made.api.sleep = made.waits.append
            return made

        yield server, judge


def test_both_orders_ties_tokens_and_cost(served):
    server, judge = served
    made = judge(price_per_million_prompt_tokens=2.0, price_per_million_answer_tokens=10.0)
    found = made.scores(["q"] * 4, ["longest", "s", "same", "abcd"], ["short", "longer", "same ", "efgh"])
    assert found.tolist() == [1.0, 0.0, 0.5, 0.5]
    assert len(server.requests) == 6  # equal texts are a tie that nobody is asked about
    report = made.report()
    assert (report["verdicts"], report["prompt_tokens"], report["answer_tokens"]) == (6, 600, 42)
    assert report["cost"] == pytest.approx((600 * 2 + 42 * 10) / 1e6)
    assert KEY not in json.dumps(report) + made.note()


def test_a_model_that_prefers_a_position_gives_ties(served):
    server, judge = served
    server.verdict = lambda question, a, b: '{"verdict": "A"}'
    made = judge()
    assert made.scores(["q", "r"], ["x", "y"], ["z", "w"]).tolist() == [0.5, 0.5]
    assert made.report()["position_dependent"] == 2


def test_verdicts_are_kept_by_content(served, tmp_path):
    server, judge = served
    assert judge().scores(["q"], ["long"], ["x"]).tolist() == [1.0]
    again = judge()
    assert again.scores(["q"], ["long"], ["x"]).tolist() == [1.0]
    assert (len(server.requests), again.report()["from_cache"]) == (2, 2)
    judge(model="other").scores(["q"], ["long"], ["x"])
    judge(criterion="Shorter is better").scores(["q"], ["long"], ["x"])
    assert len(server.requests) == 6
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and KEY in path.read_text()]


def test_busy_and_broken_answers_are_tried_again_after_the_stated_time(served):
    server, judge = served
    server.faults = [(429, {"Retry-After": "7"}, "{}"), (200, {}, "<html>not JSON</html>")]
    made = judge(max_concurrent=1)
    assert made.scores(["q"], ["long"], ["x"]).tolist() == [1.0]
    assert made.waits == [7.0, 1.0]
    server.faults = [(503, {"Retry-After": "1e9"}, "")] * 3
    with pytest.raises(ServiceUnreachable, match=r"HTTP status 503 on attempt 3 of 3") as caught:
        judge(cache=None, max_concurrent=1).scores(["q"], ["longer"], ["x"])
    assert server.url in str(caught.value) and caught.value.exit_code == 5


def test_prose_is_asked_again_and_then_left_undecided(served):
    server, judge = served
    server.verdict = lambda question, a, b: "I think that A is the better one."
    made = judge()
    assert math.isnan(made.scores(["q"], ["long"], ["x"])[0])
    assert (len(server.requests), made.report()["without_verdict"], made.report()["verdicts"]) == (4, 4, 0)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ('{"verdict": "A"}', 1.0),
        ('Sure.\n```json\n{"why": "x", "verdict": "b"}\n```', 0.0),
        ("Tie.", 0.5),
        ("A is better than B", None),
        ('{"verdict": "C"}', None),
        ('{"verdict": ["A"]}', None),
        ('{"verdict": A}', None),
        ("", None),
    ],
)
def test_verdicts_are_read_and_not_guessed(text, points):
    assert verdict_of(text) == points


def test_a_wrong_key_and_none_are_told_without_the_key(served, monkeypatch):
    server, judge = served
    monkeypatch.setenv("CHAT_KEY", "k-wrong")
    with pytest.raises(ServiceUnreachable, match="HTTP status 401 on attempt 1 of 3") as caught:
        judge().scores(["q"], ["long"], ["x"])
    assert "k-wrong" not in str(caught.value)
    monkeypatch.delenv("CHAT_KEY")
    with pytest.raises(ConfigError, match="variable CHAT_KEY that is to hold the key"):
        judge().scores(["q"], ["long"], ["x"])


def test_redirects_take_neither_texts_nor_key_elsewhere(served):
    server, judge = served
    with chat_server(longer) as other:
        server.faults = [(307, {"Location": other.url + "/chat/completions"}, "")]
        with pytest.raises(ServiceUnreachable, match="HTTP status 307"):
            judge(max_concurrent=1).scores(["q"], ["long"], ["x"])
        assert (other.requests, other.refused) == ([], [])


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"kind": "chat", "target": "http://u:p@host/v1", "chat": {"model": "m"}}, "not a base URL"),
        ({"kind": "chat", "target": "http://host/v1?key=1", "chat": {"model": "m"}}, "not a base URL"),
        ({"kind": "chat", "target": "http://host/v1"}, "needs `chat: {model: NAME}`"),
        ({"kind": "regex", "target": "(a"}, "is no regular expression: missing"),
        ({"kind": "regex", "target": "a", "chat": {"model": "m"}}, "does not read `chat`"),
        ({"kind": "regex"}, "needs a target"),
    ],
)
def test_judges_that_cannot_work_are_refused(judge, message):
    with pytest.raises(ValueError, match=message):
        JudgeConfig.model_validate({"name": "j"} | judge)


def test_regex_is_searched_and_older_params_keep_their_digest():
    judge = load_judge(JudgeConfig(name="r", kind="regex", target=r"(?m)^- name:"))
    assert isinstance(judge, RegexJudge)
    found = judge.scores(["p"] * 3, ["- name: x", "x\n- name: y", "no - name:"], [""] * 3)
    np.testing.assert_array_equal(found, [1.0, 1.0, 0.0])
    old = {"name": "r", "kind": "exact_match", "target": None}
    assert section_sha256(JudgeConfig.model_validate(old)) == section_sha256(old)
