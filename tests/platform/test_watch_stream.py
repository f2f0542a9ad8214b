from __future__ import annotations

import io
import json
import math
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from understudy.errors import ConfigError, UnencodableText
from understudy.platform import watch_stream
from understudy.platform.watch import MAX_LINE_BYTES, Scorer, parse_row, row_digest
from understudy.platform.watch_stream import Stream


def line(prompt: str, response: str = "r") -> bytes:
    return json.dumps({"prompt": prompt, "response": response}).encode() + b"\n"


BAD = {
    b"{not json\n": "not JSON",
    b"[1]\n": "not an object",
    b'{"prompt": "p"}\n': "missing field",
    b'{"prompt": "", "response": "r"}\n': "empty field",
    b'{"prompt": 3, "response": "r"}\n': "wrong type",
    b'{"prompt": "\xff", "response": "r"}\n': "not UTF-8",
    b'{"prompt": "\\ud800", "response": "r"}\n': "lone surrogate",
    line("x" * (MAX_LINE_BYTES + 9)): "too long",
}


def test_bad_rows_are_quarantined_counted_and_never_fatal(tmp_path):
    path, bad = tmp_path / "s.jsonl", tmp_path / "w/q.jsonl"
    chat = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}
    path.write_bytes(line("first") + b"\n" + b"".join(BAD) + json.dumps(chat).encode() + b"\n" + line("last", "")[:-1])
    with Stream(str(path), False, bad) as stream:
        rows = list(stream.rows())
    assert [(row.prompt, row.response) for row in rows] == [("first", "r"), ("hello", "hi"), ("last", "")]
    assert (stream.num_rows, stream.num_refused) == (3, len(BAD))
    refused = [json.loads(text) for text in bad.read_text().splitlines()]
    assert [row["reason"] for row in refused] == list(BAD.values())
    assert [row["line"] for row in refused] == list(range(3, 3 + len(BAD))) and len(refused[-1]["raw"]) < 600


def test_standard_input_and_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(line("a") + b"?\n" + line("b"))))
    with Stream("-", False, tmp_path / "q") as stream:
        assert [row.prompt for row in stream.rows()] == ["a", "b"] and stream.reasons == {"not JSON": 1}
    with pytest.raises(ConfigError, match="no stream at"):
        Stream(str(tmp_path / "absent"), False, tmp_path / "q")
    with Stream(str(tmp_path / "q"), False, tmp_path / "unused"):
        pass
    assert not (tmp_path / "unused").exists()


def test_a_followed_file_gives_finished_lines_and_survives_rotation(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_stream, "POLL_SECONDS", 0.02)
    path, seen = tmp_path / "s.jsonl", []
    path.write_bytes(line("one") + line("two")[:9])
    stream = Stream(str(path), True, tmp_path / "q")

    def read() -> None:
        for row in stream.rows():
            seen.append(row.prompt)
            if row.prompt == "end":
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wait_for(lambda: seen == ["one"])
    with path.open("ab") as file:
        file.write(line("two")[9:])
    wait_for(lambda: seen == ["one", "two"])
    (tmp_path / "new").write_bytes(line("three"))
    (tmp_path / "new").rename(path)
    wait_for(lambda: seen[2:] == ["three"])
    path.write_bytes(line("end"))  # shorter than what was read
    reader.join(60)
    assert seen == ["one", "two", "three", "end"] and stream.num_refused == 0


def test_rows_that_differ_have_different_digests(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_bytes(line("ab", "c") + line("a", "bc") + line("ab", "c"))
    with Stream(str(path), False, tmp_path / "q") as stream:
        first, second, third = map(row_digest, stream.rows())
    assert first == third != second


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_row_that_the_model_cannot_be_given_is_counted_and_never_fatal(monkeypatch):
    from models.families import random_policy

    policy = random_policy("llama")
    encode_prompt = policy.encode_prompt

    def refusing(messages):
        if messages[0]["role"] == "system":
            raise UnencodableText("the chat template refuses the conversation")
        return encode_prompt(messages)

    monkeypatch.setattr(policy, "encode_prompt", refusing)
    system = {"messages": [{"role": role, "content": "a"} for role in ("system", "user", "assistant")]}
    rows = [parse_row(line("alpha", "beta<|end|>")), parse_row(json.dumps(system).encode())]
    scorer = Scorer(policy, None, False, frozenset(), [])
    values = scorer.scores(rows)
    assert scorer.num_unencodable == 1
    assert values["response length"][0] == len(policy.encode_response("beta<|end|>")) > 5
    assert all(math.isfinite(column[0]) and math.isnan(column[1]) for column in values.values())
