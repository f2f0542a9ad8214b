"""One raw row to one demonstration, or to the one reason why it is refused.

Accepted forms: `prompt` and `response` texts, or chat `messages` of `{"role", "content"}` whose last assistant
turn is the demonstration (what follows it is dropped, what precedes it is the context). A list of text parts,
`{"type": "text", "text"}`, is content, too: their texts, one after the other. Optional: `id` and `group` (text or whole
number), `metadata` (an object). A null counts as absent; other fields are ignored and named in the summary. The source
may have other names for all these (`data.fields`). Text is kept as it is: a carriage return is accepted only before a
newline. Whole numbers are kept as they are, too, however many digits they have.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import orjson

from understudy.config import FieldsConfig

Reason = Literal[
    "not UTF-8",
    "lone surrogate",
    "not JSON",
    "not an object",
    "duplicate key",
    "mixed forms",
    "missing field",
    "empty field",
    "wrong type",
    "unknown role",
    "no user turn",
    "no assistant turn",
    "control character",
    "too long",
    "duplicate id",
]
FIELDS = frozenset({"id", "group", "prompt", "response", "messages", "metadata"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
_PAIR = {"prompt", "response"}
MESSAGE_FIELDS = frozenset({"role", "content"})
PART_FIELDS = frozenset({"type", "text"})
_SHOWN_KEYS, _SHOWN_CHARS = 12, 40
# The parser makes floats of whole numbers beyond 64 bits, which are written as JSON with an exponent. To look for that
# in metadata costs a tenth of looking at its values.
_EXPONENT = "e+"
_ROLES = frozenset({"system", "user", "assistant"})
# Every key ends so; an escaped quotation mark inside a text does not count, unless a backslash itself is escaped.
_KEY_END = re.compile(rb'(?<!\\)"\s*:')


# A named tuple's own constructor is Python code, six times as slow: at 20 µs a row that counts.
new_tuple = tuple.__new__


class RowProblem(Exception):
    """Why a row is refused: a `Reason`, and the particulars."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


class LongNumber:
    """A whole number beyond 64 bits, for which the parser would have a float."""

    def __init__(self, digits: str) -> None:
        self.digits = digits


class Row(NamedTuple):
    """A valid row; `messages` is the context with roles, `prompt` its last user turn."""

    id: str | None
    group: str | None
    messages: list[dict[str, str]]
    prompt: str
    response: str
    metadata_json: str


@dataclass(frozen=True)
class Limits:
    """What a row may hold; lengths in characters, the prompt's over the whole context.

    `names` are those of the fields in the source, as `field_names` returns them.
    """

    max_prompt_chars: int
    max_response_chars: int
    unicode_form: str = "keep"
    names: Mapping[str, str] | None = None


def field_names(fields: FieldsConfig | None) -> dict[str, str]:
    """Return the name in the source of every field that is read: where one form is named, the other is not."""
    named: dict[str, str] = fields.model_dump(exclude_none=True) if fields else {}
    unread = {"messages"} if named.keys() & _PAIR else _PAIR if "messages" in named else set()
    return {field: named.get(field, field) for field in sorted(FIELDS - unread)}


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse one JSON line into an object.

    Raises:
        RowProblem: it is not UTF-8, not JSON (NaN and Infinity are not), not an object, or repeats a key.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        row = _parse_again(line, error)
    if not isinstance(row, dict):
        raise RowProblem("not an object", f"the line is {_kind(row)}")
    try:
        if _may_repeat_keys(line, _num_keys(row)):
            _refuse_repeated_keys(line)
    except RecursionError as error:
        raise RowProblem("not JSON", "objects or lists are nested too deep") from error
    return row


def may_hold_controls(line: bytes) -> bool:
    """Whether a JSON line could hold a forbidden character: escaped, since JSON allows no raw one below a space.

    A few searches for bytes cost a tenth of looking at every character of the parsed texts.
    """
    # Lines without any escape, the usual ones, are searched for the backslash alone.
    if b"\\" in line and (b"\\u" in line or b"\\r" in line or b"\\b" in line or b"\\f" in line):
        return True
    return b"\x7f" in line or (not line.isascii() and b"\xc2" in line)


def validate_row(row: dict[str, Any], limits: Limits, raw: bytes | None = None) -> Row:
    """Check one parsed row against the schema.

    Args:
        row: the parsed row.
        limits: on its texts.
        raw: the line that it was parsed from, if any.

    Raises:
        RowProblem: with the first reason that applies.
    """
    get = _getter(row, limits)
    prompt, response, messages = get("prompt"), get("response"), get("messages")
    context: list[dict[str, str]]
    if messages is None or (messages == [] and prompt is not None):
        _require_text(prompt, "prompt", row)
        _require_text(response, "response", row)
        context = [{"role": "user", "content": prompt}]
        num_prompt_chars = len(prompt)
    else:
        if prompt is not None or response is not None:
            raise RowProblem("mixed forms", "messages stand beside prompt or response; keep one form")
        context, prompt, response = _split_messages(messages)
        num_prompt_chars = sum(len(message["content"]) for message in context)
    if limits.unicode_form != "keep":
        context, prompt, response = _normalised(context, prompt, response, limits.unicode_form)
    if num_prompt_chars > limits.max_prompt_chars or len(response) > limits.max_response_chars:
        raise _too_long(num_prompt_chars, len(response), limits)
    row_id, group, metadata = get("id"), get("group"), get("metadata")
    if raw is not None and (type(row_id) is float or type(group) is float):
        exact = _getter(_parse_exactly(raw), limits)
        row_id, group = exact("id"), exact("group")
    row_id = None if row_id is None else _name(row_id, "id")
    group = None if group is None else _name(group, "group")
    if raw is None or limits.unicode_form != "keep" or may_hold_controls(raw):
        _refuse_control_characters(context, response, row_id, group)
    metadata_json = "{}" if metadata is None else _metadata_json(metadata)
    if raw is not None and _EXPONENT in metadata_json:
        metadata_json = _metadata_json(_getter(_parse_exactly(raw), limits)("metadata"))
    return new_tuple(Row, (row_id, group, context, prompt, response, metadata_json))


def _getter(row: dict[str, Any], limits: Limits) -> Callable[[str], Any]:
    """Return what gives a row's fields by our names."""
    return row.get if limits.names is None else _under_our_names(row, limits.names).get


def _parse_exactly(line: bytes) -> dict[str, Any]:
    """Parse a good line again, slower, with its whole numbers as they are."""

    def whole(digits: str) -> int | LongNumber:
        number = int(digits)
        return number if -(2**63) <= number < 2**64 else LongNumber(digits)

    try:
        row: dict[str, Any] = json.loads(line.removeprefix(_BYTE_ORDER_MARK), parse_int=whole)
    except RecursionError as error:
        raise RowProblem("not JSON", "objects or lists are nested too deep") from error
    return row


def _too_long(prompt: int, response: int, limits: Limits) -> RowProblem:
    at_fault = ("prompt", prompt, limits.max_prompt_chars), ("response", response, limits.max_response_chars)
    name, length, limit = next(part for part in at_fault if part[1] > part[2])
    return RowProblem("too long", f"the {name} has {length} characters, the limit is {limit}")


def _parse_again(line: bytes, error: Exception) -> Any:
    """Parse what the fast parser refused, only to say why, or to forgive a byte order mark."""
    if line.startswith(_BYTE_ORDER_MARK):
        line = line[len(_BYTE_ORDER_MARK) :]
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError as second:
            error = second
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise RowProblem("not UTF-8", f"byte {problem.start} is {line[problem.start]:#04x}") from problem
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_refuse_endless)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as problem:
        code = ord(problem.object[problem.start])
        raise RowProblem("lone surrogate", f"U+{code:04X} without its other half") from problem
    except (ValueError, RecursionError):
        pass
    raise RowProblem("not JSON", str(error)) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_endless(digits: str) -> str:
    """Return a whole number as text, of which Python refuses to make a very long number."""
    if math.isinf(float(digits)):
        told = f"the whole number {digits[:_SHOWN_CHARS]}… has {len(digits.removeprefix('-'))} digits"
        raise RowProblem("wrong type", f"{told}, and numbers up to 1.8e308 can be read; write it as text")
    return digits


def _may_repeat_keys(line: bytes, num_keys: int) -> bool:
    """Say whether the text could hold more keys than the parsed object, by counting ends of keys from above."""
    # Every key has its colon; most texts have none, and counting one byte costs a tenth of the other searches.
    if line.count(b":") == num_keys:
        return False
    if line.count(b'":') == num_keys and b" :" not in line and b"\t:" not in line and b"\r:" not in line:
        return False
    return b"\\\\" in line or len(_KEY_END.findall(line)) != num_keys


def _num_keys(value: Any) -> int:
    count = 0
    if type(value) is dict:
        count = len(value)
        for item in value.values():
            if type(item) is dict or type(item) is list:
                count += _num_keys(item)
    elif type(value) is list:
        for item in value:
            count += _num_keys(item)
    return count


def _refuse_repeated_keys(line: bytes) -> None:
    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise RowProblem("duplicate key", f"{', '.join(repeated)} stands more than once in one object")
        return members

    # Whole numbers stay text here: Python refuses to convert very long ones.
    json.loads(line.removeprefix(_BYTE_ORDER_MARK), object_pairs_hook=check, parse_int=str)


def _require_text(value: Any, name: str, holder: dict[str, Any]) -> None:
    if type(value) is str and value and not value.isspace():
        return
    if value is None:
        raise RowProblem("missing field", f"{name} is absent; {_keys(holder)}")
    if not isinstance(value, str):
        raise RowProblem("wrong type", f"{name} is {_kind(value)}, not text")
    raise RowProblem("empty field", f"{name} is blank")


def _under_our_names(row: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return what is read of a row; a name that somebody gave must be there, for else a typo would lose all groups."""
    for field, name in names.items():
        if name not in row and name != field:
            raise RowProblem("missing field", f"{name}, the {field} by data.fields, is absent; {_keys(row)}")
    return {field: row.get(name) for field, name in names.items()}


def _keys(holder: dict[str, Any]) -> str:
    names = [name[:_SHOWN_CHARS] for name in holder]
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return f"it has the keys {', '.join(names[:_SHOWN_KEYS])}{more}" if names else "it has no keys"


def _split_messages(messages: Any) -> tuple[list[dict[str, str]], str, str]:
    """Return the context before the last assistant turn, its last user turn, and that assistant turn."""
    if not isinstance(messages, list):
        raise RowProblem("wrong type", f"messages is {_kind(messages)}, not a list")
    if not messages:
        raise RowProblem("empty field", "messages is an empty list")
    turns = [_turn(message, index) for index, message in enumerate(messages)]
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise RowProblem("no assistant turn", "no message has the role assistant, so there is no demonstration")
    context = turns[:last]
    for turn in reversed(context):
        if turn["role"] == "user":
            return context, turn["content"], turns[last]["content"]
    raise RowProblem("no user turn", "no message with the role user precedes the last assistant turn")


def _turn(message: Any, index: int) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise RowProblem("wrong type", f"{where} is {_kind(message)}, not an object")
    role, content = message.get("role"), message.get("content")
    if type(content) is list:
        content = "".join([_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)])
    _require_text(role, f"{where}.role", message)
    if role not in _ROLES:
        raise RowProblem("unknown role", f"{where}.role is {str(role)[:40]!r}, not system, user or assistant")
    _require_text(content, f"{where}.content", message)
    return {"role": str(role), "content": str(content)}


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise RowProblem("wrong type", f"{where} is {_kind(part)}, not an object")
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        shown = f"of type {kind[:_SHOWN_CHARS]!r}" if isinstance(kind, str) else "of no type"
        raise RowProblem("wrong type", f"{where} is a part {shown}; only parts of type 'text' can be read")
    if not isinstance(text, str):
        raise RowProblem("wrong type", f"{where}.text is {_kind(text)}, not text")
    return text


def _normalised(
    context: list[dict[str, str]], prompt: str, response: str, form: str
) -> tuple[list[dict[str, str]], str, str]:
    normal: Callable[[str], str] = lambda text: unicodedata.normalize(form, text)  # type: ignore[arg-type]  # noqa: E731
    turns = [{"role": turn["role"], "content": normal(turn["content"])} for turn in context]
    return turns, normal(prompt), normal(response)


def _name(value: Any, field: str) -> str:
    if type(value) is int:
        return str(value)
    if type(value) is LongNumber:
        return value.digits
    if type(value) is not str:
        raise RowProblem("wrong type", f"{field} is {_kind(value)}, not text or a whole number")
    if not value.strip():
        raise RowProblem("empty field", f"{field} is blank")
    return value


def _refuse_control_characters(context: list[dict[str, str]], response: str, *names: str | None) -> None:
    texts = [response, *[turn["content"] for turn in context], *[name for name in names if name]]
    # One search for all; a tab between them does not hide a carriage return at the end of one.
    text = "\t".join(texts)
    if not _FORBIDDEN.search(text):
        return
    turns = ["prompt"] if len(context) == 1 else [f"turn {number} of the context" for number in range(1, len(texts))]
    for where, text in zip(["response", *turns[: len(context)], "id or group", "id or group"], texts, strict=False):
        if found := _FORBIDDEN.search(text):
            raise RowProblem(
                "control character", f"U+{ord(found[0]):04X} in the {where} after {text[: found.start()][-20:]!r}"
            )


def _metadata_json(metadata: Any) -> str:
    if not isinstance(metadata, dict):
        raise RowProblem("wrong type", f"metadata is {_kind(metadata)}, not an object")
    try:
        return orjson.dumps(metadata, default=_long_number_json, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError as error:
        raise RowProblem("wrong type", f"metadata cannot be written as JSON: {error}") from error


def _long_number_json(value: Any) -> orjson.Fragment:
    if type(value) is LongNumber:
        return orjson.Fragment(value.digits)
    raise TypeError(type(value).__name__)


def _kind(value: Any) -> str:
    for kinds, name in (
        (type(None), "null"),
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "text"),
        (bytes, "bytes"),
        (list, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, kinds):
            return name
    return type(value).__name__
