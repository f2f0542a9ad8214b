from __future__ import annotations

import json
from typing import get_args

import pytest

from understudy.config import FieldsConfig
from understudy.data.rows import Limits, Reason, RowProblem, field_names, parse_line, validate_row

LIMITS = Limits(max_prompt_chars=20, max_response_chars=30)
GOOD = {"prompt": "p", "response": "r"}


def line(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_an_absent_field_is_named_with_the_keys_that_are_there() -> None:
    with pytest.raises(RowProblem, match="^missing field: prompt is absent; it has the keys input, output$"):
        validate_row({"input": "p", "output": "r"}, LIMITS)
    with pytest.raises(RowProblem, match=r"messages\[0\].content is absent; it has the keys role$"):
        validate_row({"messages": [{"role": "user"}]}, LIMITS)
    with pytest.raises(RowProblem, match="it has the keys 0, 1, .* 10, 11 and 3 more$"):
        validate_row({str(index): "" for index in range(15)}, LIMITS)


def chat(*turns: tuple[str, str]) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}).encode()


def parts(*content: object) -> bytes:
    """A row whose user turn is a list of parts."""
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "r"}]
    return json.dumps({"messages": turns}).encode()


BAD = [
    ("not UTF-8", b'{"prompt": "\xff", "response": "r"}'),
    ("not UTF-8", b'{"prompt": "\xed\xa0\x80", "response": "r"}'),
    ("not UTF-8", json.dumps(GOOD).encode("utf-16")),
    ("lone surrogate", b'{"prompt": "a\\ud800", "response": "r"}'),
    ("lone surrogate", b'{"prompt": "a", "response": "\\udc00"}'),
    ("lone surrogate", b'{"prompt": "a", "response": "r", "metadata": {"k": "\\ud83d"}}'),
    ("not JSON", b"{"),
    ("not JSON", b'{"prompt": "p", "respo'),
    ("not JSON", b"prompt,response"),
    ("not JSON", b'{"prompt": "p", "response": "r", "metadata": {"x": NaN}}'),
    ("not JSON", b'{"prompt": "p", "response": "r", "metadata": {"x": -Infinity}}'),
    ("not JSON", b'{"prompt": "p", "response": "r"} trailing'),
    ("not JSON", b'{"prompt": "a raw \x00 byte", "response": "r"}'),
    ("not JSON", b"[" * 100_000),
    ("not JSON", b'{"prompt": "p", "response": "r", "metadata": ' + b'{"a":' * 1010 + b"1" + b"}" * 1011),
    ("not an object", b'["p", "r"]'),
    ("not an object", b'"text"'),
    ("not an object", b"null"),
    ("not an object", b"7"),
    ("duplicate key", b'{"prompt": "p", "prompt": "q", "response": "r"}'),
    ("duplicate key", b'{"prompt": "p", "\\u0070rompt" : "q", "response": "r"}'),
    ("duplicate key", b'{"prompt": "a\\\\", "prompt": "q", "response": "r"}'),
    ("duplicate key", b'{"prompt": "p", "response": "r", "metadata": {"k": 1, "k": 2}}'),
    ("mixed forms", b'{"prompt": "p", "messages": [{"role": "user", "content": "p"}]}'),
    ("mixed forms", b'{"response": "p", "messages": []}'),
    ("missing field", b"{}"),
    ("missing field", b'{"prompt": "p"}'),
    ("missing field", b'{"response": "r"}'),
    ("missing field", line(response=None)),
    ("missing field", b'{"messages": [{"role": "user"}]}'),
    ("missing field", b'{"messages": [{"content": "x"}]}'),
    ("empty field", line(prompt="")),
    ("empty field", line(response=" \n\t ")),
    ("empty field", line(id="")),
    ("empty field", line(group=" ")),
    ("empty field", b'{"messages": []}'),
    ("empty field", chat(("user", ""), ("assistant", "r"))),
    ("wrong type", line(prompt=7)),
    ("wrong type", line(prompt=True)),
    ("wrong type", line(response=["r"])),
    ("wrong type", line(prompt=[{"role": "user", "content": "p"}])),
    ("wrong type", line(id=1.5)),
    ("wrong type", line(id=True)),
    ("wrong type", line(group={"a": 1})),
    ("wrong type", line(metadata="text")),
    ("wrong type", b'{"messages": "hello"}'),
    ("wrong type", b'{"messages": {"role": "user", "content": "p"}}'),
    ("wrong type", b'{"messages": ["hello"]}'),
    ("wrong type", b'{"messages": [{"role": 1, "content": "p"}]}'),
    ("wrong type", b'{"messages": [{"role": "user", "content": [1]}]}'),
    ("wrong type", parts({"type": "image_url", "image_url": {"url": "x"}})),
    ("wrong type", parts({"text": "p"})),
    ("wrong type", parts({"type": "text", "text": 1})),
    ("wrong type", parts({"type": "text"})),
    ("wrong type", parts("p")),
    ("empty field", parts()),
    ("empty field", parts({"type": "text", "text": " "})),
    ("unknown role", chat(("user", "p"), ("tool", "x"), ("assistant", "r"))),
    ("no user turn", chat(("system", "s"), ("assistant", "r"))),
    ("no user turn", chat(("assistant", "r"), ("user", "p"))),
    ("no assistant turn", chat(("user", "p"))),
    ("control character", line(prompt="a\x00b")),
    ("control character", line(response="a\x1bb")),
    ("control character", line(response="a\x7fb")),
    ("control character", line(response="a\x85b")),
    ("control character", line(response="a\rb")),
    ("control character", line(id="a\x00")),
    ("control character", chat(("system", "\x08"), ("user", "p"), ("assistant", "r"))),
    ("too long", line(prompt="x" * 21)),
    ("too long", line(response="x" * 31)),
    ("too long", chat(("system", "x" * 15), ("user", "x" * 6), ("assistant", "r"))),
]


@pytest.mark.parametrize(("reason", "raw"), BAD, ids=[f"{i}-{reason}" for i, (reason, _) in enumerate(BAD)])
def test_bad_row_has_its_reason(reason: str, raw: bytes) -> None:
    with pytest.raises(RowProblem) as caught:
        validate_row(parse_line(raw), LIMITS)
    assert caught.value.reason == reason
    assert caught.value.detail


@pytest.mark.parametrize(("reason", "raw"), BAD, ids=[f"{i}-{reason}" for i, (reason, _) in enumerate(BAD)])
def test_bad_row_has_its_reason_also_when_its_line_is_known(reason: str, raw: bytes) -> None:
    with pytest.raises(RowProblem) as caught:
        validate_row(parse_line(raw), LIMITS, raw)
    assert caught.value.reason == reason


@pytest.mark.parametrize("escaped", [True, False])
def test_knowing_the_line_changes_no_verdict_on_any_character(escaped: bool) -> None:
    verdicts = []
    for code in [*range(1, 0x180), 0x2028, 0xFFFD, 0x1F600]:
        raw = json.dumps({"prompt": f"a{chr(code)}b", "response": "r"}, ensure_ascii=escaped).encode()
        row, found = parse_line(raw), []
        for line_known in (None, raw):
            try:
                validate_row(row, LIMITS, line_known)
                found.append("")
            except RowProblem as problem:
                found.append(problem.reason)
        assert found[0] == found[1], hex(code)
        verdicts.append(found[0])
    assert verdicts.count("control character") == 29 + 1 + 32


def test_every_reason_is_tried() -> None:
    assert {reason for reason, _ in BAD} == set(get_args(Reason)) - {"duplicate id"}  # ids: test_ingest.py


@pytest.mark.parametrize(
    "text",
    ["a\tb\nc", "a\r\nb", "é e\u0301", "日本語 \U0001f600", '"quoted": {"prompt": 1}', "back\\slash\\\\", " edge "],
)
def test_text_is_kept_as_it_is(text: str) -> None:
    for ensure_ascii in (True, False):
        raw = json.dumps({"prompt": text, "response": text + "!"}, ensure_ascii=ensure_ascii).encode()
        row = validate_row(parse_line(raw), Limits(100, 100))
        assert (row.prompt, row.response) == (text, text + "!")


def test_nfc_only_when_asked() -> None:
    raw = line(prompt="e\u0301", response="e\u0301")
    assert validate_row(parse_line(raw), LIMITS).prompt == "e\u0301"
    composed = validate_row(parse_line(raw), Limits(20, 20, "NFC"))
    assert (composed.prompt, composed.response, composed.messages[0]["content"]) == ("é", "é", "é")


def test_chat_takes_the_last_assistant_turn_and_the_context_before_it() -> None:
    raw = chat(("system", "s"), ("user", "p"), ("assistant", "a"), ("user", "q"), ("assistant", "b"), ("user", "z"))
    row = validate_row(parse_line(raw), LIMITS)
    assert row.response == "b"
    assert row.prompt == "q"
    assert [turn["role"] for turn in row.messages] == ["system", "user", "assistant", "user"]


def test_text_parts_are_their_texts_joined_and_other_parts_are_named() -> None:
    first, second = {"type": "text", "text": "a \r"}, {"type": "text", "text": "\nb", "cache_control": {"type": "x"}}
    for raw in (None, parts(first, second)):
        row = validate_row(parse_line(parts(first, second)), LIMITS, raw)
        assert row == validate_row(parse_line(chat(("user", "a \r\nb"), ("assistant", "r"))), LIMITS)
    with pytest.raises(RowProblem, match=r"messages\[0\].content\[1\] is a part of type 'image_url'; only parts of"):
        validate_row(parse_line(parts(first, {"type": "image_url"})), LIMITS)
    with pytest.raises(RowProblem, match="the prompt has 21 characters, the limit is 20"):
        validate_row(parse_line(parts(*[{"type": "text", "text": "1234567"}] * 3)), LIMITS)
    with pytest.raises(RowProblem, match="control character: U.0007 in the prompt after 'a'"):
        validate_row(
            parse_line(parts({"type": "text", "text": "a\x07"})), LIMITS, parts({"type": "text", "text": "\x07"})
        )


def test_optional_fields() -> None:
    raw = (
        b'{"prompt": "p", "response": "r", "id": 7, "group": null, "metadata": {"b": 1, "a": [null]}, "messages": null}'
    )
    row = validate_row(parse_line(raw), LIMITS)
    assert (row.id, row.group, row.metadata_json) == ("7", None, '{"a":[null],"b":1}')


def test_byte_order_mark_is_forgiven() -> None:
    assert parse_line(b"\xef\xbb\xbf" + line()) == GOOD


WHOLE = [2**64 - 1, 2**64, 2**64 + 1, -(2**63), -(2**63) - 1, 123456789012345678901234567890, -(10**308) - 1]


@pytest.mark.parametrize("number", WHOLE, ids=[f"{number:.20e}" for number in WHOLE])
def test_whole_numbers_are_kept_exactly_however_long(number: int) -> None:
    metadata = {"b": {"n": [number, 0.5, 1e29, None]}, "a": "1e99"}
    raw = line(id=number, group=-number, metadata=metadata)
    row = validate_row(parse_line(raw), LIMITS, raw)
    assert (row.id, row.group, json.loads(row.metadata_json)) == (str(number), str(-number), metadata)
    # The same text as that of other metadata: keys in order, floats as they are elsewhere.
    assert row.metadata_json == f'{{"a":"1e99","b":{{"n":[{number},0.5,1e+29,null]}}}}'


def test_long_whole_numbers_are_kept_under_other_names_too_and_behind_a_byte_order_mark() -> None:
    names = field_names(FieldsConfig(prompt="input", response="output", id="key", metadata="more"))
    raw = b'\xef\xbb\xbf{"input": "p", "output": "r", "key": %d, "more": {"n": %d}, "id": 0.5}' % (10**20, 10**25)
    row = validate_row(parse_line(raw), Limits(20, 30, names=names), raw)
    assert (row.id, row.metadata_json) == (str(10**20), f'{{"n":{10**25}}}')


def test_a_float_is_no_whole_number_however_large() -> None:
    raw = line(metadata={"n": 1e29, "m": 2.0**63})
    assert validate_row(parse_line(raw), LIMITS, raw).metadata_json == '{"m":9.223372036854776e+18,"n":1e+29}'
    for raw in (b'{"prompt": "p", "response": "r", "id": 1e20}', line(group=-1e300)):
        with pytest.raises(RowProblem, match="^wrong type: (id|group) is a number, not text or a whole number$"):
            validate_row(parse_line(raw), LIMITS, raw)


def test_a_whole_number_that_no_float_reaches_is_named_with_the_limit() -> None:
    raw = b'{"prompt": "p", "response": "r", "more": {"n": -%b}}' % (b"9" * 5000)
    with pytest.raises(RowProblem) as refused:
        parse_line(raw)
    assert (refused.value.reason, refused.value.detail) == (
        "wrong type",
        f"the whole number -{'9' * 39}… has 5000 digits, and numbers up to 1.8e308 can be read; write it as text",
    )


def test_very_long_numbers_do_not_stop_the_program() -> None:
    raw = b'{"prompt": "\\\\", "response": "r", "metadata": {"n": ' + b"9" * 300 + b"}}"
    assert validate_row(parse_line(raw), LIMITS).prompt == "\\"
