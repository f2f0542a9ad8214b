"""Judge of the default demonstrations: is the response one call of an Ansible module that the module would accept?

It tests form, not intent: a call that deletes what the prompt asks to create is still valid. Report it beside the
likelihood of, or the similarity to, the expert's text, never alone.

Rules, each named in what `check` returns:

    yaml            the text is one YAML document without anchors or unknown tags
    duplicate_key   no mapping names a key twice
    one_module      a mapping with exactly one key besides task keywords such as `register` and `when`
    module          that key is the full name of a module of the collections the schema covers
    arguments       the module's arguments are a mapping
    required        every required option is there, under its name or an alias
    unknown_option  every option is documented, by the module or by its doc fragments
    type            values fit the documented type, as loosely as Ansible converts them
    choice          values are among the documented choices

The last four hold for suboptions as well. A value with a Jinja template fits everything, because only the running
play knows what it becomes. Where a doc fragment is not in the wheel, `unknown_option` cannot be decided and is
left out for that module (`decidable` says so).

The schema is written by extract.py beside the demonstrations, `.understudy/raw/ansible_schema.json`; one in
`$UNDERSTUDY_WORKDIR/raw` comes first.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

SCHEMA_NAME = "ansible_schema.json"

MAX_CHARS = 20_000
MAX_DEPTH = 50
# The C parser recurses without a guard: text that could nest deeper than this never reaches it.
_MAX_BRACKETS = 400
_MAX_INDENT = 200
_INDENT = re.compile(r"^[ \t\-?:]*", re.MULTILINE)

TASK_KEYWORDS = frozenset(
    "any_errors_fatal async become become_flags become_method become_user changed_when check_mode collections "
    "connection debugger delay delegate_facts delegate_to diff environment failed_when ignore_errors "
    "ignore_unreachable loop loop_control module_defaults name no_log notify poll port register remote_user retries "
    "run_once tags throttle timeout until vars when".split()
)

_TRUE, _FALSE = frozenset(("true", "yes", "on", "1", "t", "y")), frozenset(("false", "no", "off", "0", "f", "n"))

Schema = Mapping[str, Any]


class _NotOneCall(Exception):
    """The text is not a YAML document that could be a call; the message starts with the rule."""


def judge(prompt: str, response: str, reference: str) -> float:
    """Return 1.0 for a valid call, 0.0 for anything else, NaN where the question does not apply.

    NaN (undecided: leave it out of the mean and count it) is returned where there is no schema, as with the
    fallback demonstrations, and where the expert's own text is not a call of a module the schema covers, as with
    other people's data. Never raises, whatever the response holds.
    """
    schema = _schema(_schema_path())
    if schema is None or not _names_known_module(reference, _schema_path()):
        return math.nan
    return 0.0 if check(response, schema) else 1.0


def judge_module(prompt: str, response: str, reference: str) -> float:
    """Like `judge`, but a call of another module than the expert's scores 0.0."""
    return _of_what_was_asked(prompt, response, reference, parts=None)


def judge_collection(prompt: str, response: str, reference: str) -> float:
    """Like `judge`, but a call of a module of another collection than the expert's scores 0.0."""
    return _of_what_was_asked(prompt, response, reference, parts=2)


def _of_what_was_asked(prompt: str, response: str, reference: str, parts: int | None) -> float:
    score, schema = judge(prompt, response, reference), _schema(_schema_path())
    if score != 1.0 or schema is None:
        return score
    called, asked = (_today(_call(text)[0], schema).split(".")[:parts] for text in (response, reference))
    return float(called == asked)


def check(response: str, schema: Schema | None = None) -> list[str]:
    """Name every broken rule as `rule: what, where`; an empty list is a valid call.

    Raises:
        FileNotFoundError: no schema was given and none is in the working directory.
    """
    schema = schema if schema is not None else _schema(_schema_path())
    if schema is None:
        raise FileNotFoundError(f"{_schema_path()} does not exist. Write it with: python -m examples.ansible.extract")
    try:
        fqcn, arguments = _call(response)
    except _NotOneCall as problem:
        return [str(problem)]
    module = _module(fqcn, schema)
    if module is None:
        return [f"module: {fqcn!r} is not a module of the collections in the schema"]
    if not isinstance(arguments, dict | None):
        return [f"arguments: of {fqcn} are {_kind(arguments)}, not a mapping of options"]
    return list(_options_problems(arguments or {}, module["options"], fqcn, module["complete"]))


def decidable(response: str, schema: Schema | None = None) -> bool:
    """False where the called module has a doc fragment outside the wheel, so that unknown options go unnoticed."""
    schema = schema if schema is not None else _schema(_schema_path())
    try:
        module = _module(_call(response)[0], schema or {"modules": {}, "redirects": {}})
    except _NotOneCall:
        return True
    return module is None or bool(module["complete"])


def _schema_path() -> Path:
    places = [
        Path(folder) / "raw" / SCHEMA_NAME for folder in (os.environ.get("UNDERSTUDY_WORKDIR"), ".understudy") if folder
    ]
    return next((path for path in places if path.is_file()), places[0])


@functools.cache
def _schema(path: Path) -> Schema | None:
    if not path.is_file():
        warnings.warn(f"No {path}: Ansible validity is undecided for every response.", stacklevel=3)
        return None
    schema: Schema = json.loads(path.read_text(encoding="utf-8"))
    return schema


@functools.lru_cache(maxsize=65536)
def _names_known_module(reference: str, path: Path) -> bool:
    schema = _schema(path)
    try:
        return schema is not None and _module(_call(reference)[0], schema) is not None
    except _NotOneCall:
        return False


def _today(fqcn: str, schema: Schema) -> str:
    """The name that a module has now."""
    return str(schema["redirects"].get(fqcn, fqcn))


def _module(fqcn: str, schema: Schema) -> Mapping[str, Any] | None:
    module: Mapping[str, Any] | None = schema["modules"].get(_today(fqcn, schema))
    return module


def _call(text: str) -> tuple[str, Any]:
    """The name of the module that `text` calls, and its arguments."""
    task = _document(text)
    if not isinstance(task, dict):
        raise _NotOneCall(f"one_module: the document is {_kind(task)}, not a mapping")
    keys = [key for key in task if key not in TASK_KEYWORDS and not str(key).startswith("with_")]
    if len(keys) != 1:
        raise _NotOneCall(f"one_module: {len(keys)} keys could be a module: {[str(key)[:80] for key in keys[:5]]}")
    return str(keys[0]), task[keys[0]]


def _document(text: str) -> Any:
    """Parse as YAML, refusing what would overflow a stack, expand without bound or hide a repeated key."""
    brackets = text.count("[") + text.count("{")
    if len(text) > MAX_CHARS or brackets > _MAX_BRACKETS or max(map(len, _INDENT.findall(text))) > _MAX_INDENT:
        raise _NotOneCall(f"yaml: {len(text)} characters, nested too deep or too long to be a module call")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise _NotOneCall("one_module: the document is empty")
        _refuse_shared_and_repeated(node)
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        # Impossible dates, integers of thousands of digits and lone surrogates end in errors other than YAMLError.
        raise _NotOneCall(f"yaml: {' '.join(str(error).split())[:200]}") from error
    finally:
        if loader is not None:
            loader.dispose()


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _refuse_shared_and_repeated(root: yaml.Node) -> None:
    seen: set[int] = set()
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        if id(node) in seen:
            raise _NotOneCall("yaml: an alias repeats an anchored node")
        if depth > MAX_DEPTH:
            raise _NotOneCall(f"yaml: nested deeper than {MAX_DEPTH}")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in names:
                    raise _NotOneCall(f"duplicate_key: {key.value[:80]!r} appears twice in one mapping")
                if isinstance(key, yaml.ScalarNode):
                    names.add(key.value)
                stack += [(key, depth + 1), (value, depth + 1)]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(item, depth + 1) for item in node.value]


def _options_problems(given: dict[Any, Any], options: Mapping[str, Any], where: str, complete: bool) -> Iterator[str]:
    names = _names(options)
    present = {names.get(str(name), str(name)) for name in given}
    for name, option in options.items():
        if option.get("required") is True and name not in present:
            yield f"required: {name} is missing in {where}"
    for key, value in given.items():
        known = names.get(str(key))
        if known is not None:
            yield from _value_problems(value, options[known], f"{where}.{known}")
        elif complete:
            yield f"unknown_option: {str(key)[:80]} is no option of {where}"


def _names(options: Mapping[str, Any]) -> dict[str, str]:
    names = {str(alias): name for name, option in options.items() for alias in option.get("aliases", ())}
    return names | {name: name for name in options}


def _value_problems(value: Any, option: Mapping[str, Any], where: str) -> Iterator[str]:
    if value is None or _is_template(value):
        return
    kind = option.get("type")
    if kind is not None and not _fits(value, kind):
        yield f"type: {where} is {_kind(value)}, documented as {kind}"
        return
    items = value if isinstance(value, list) else [value]
    if choices := option.get("choices"):
        # Ansible splits text at commas where it wants a list.
        parts = value.split(",") if kind == "list" and isinstance(value, str) else items
        for part in parts:
            if not _is_template(part) and not _among(part, choices):
                yield f"choice: {where} is {str(part)[:80]!r}, one of {choices} is documented"
    for item in items:
        if isinstance(item, dict) and "options" in option:
            yield from _options_problems(item, option["options"], where, complete=True)
        elif isinstance(value, list) and (elements := option.get("elements")):
            if item is not None and not _is_template(item) and not _fits(item, elements):
                yield f"type: {where} has an element that is {_kind(item)}, documented as {elements}"


def _fits(value: Any, kind: str) -> bool:
    """Whether Ansible would convert `value` to the documented type."""
    if kind in ("str", "path", "bytes", "bits"):
        return not isinstance(value, dict | list)
    if kind == "bool":
        return isinstance(value, bool) or str(value).lower() in _TRUE | _FALSE
    if kind == "int":
        return not isinstance(value, bool) and re.fullmatch(r"\s*[+-]?\d+(\.0*)?\s*", str(value)) is not None
    if kind == "float":
        return not isinstance(value, bool) and _is_number(value)
    if kind == "list":
        return not isinstance(value, dict)
    if kind == "dict":
        return isinstance(value, dict) or (isinstance(value, str) and ("=" in value or value.lstrip().startswith("{")))
    return True  # raw, json, jsonarg: anything


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _among(value: Any, choices: list[Any]) -> bool:
    if isinstance(value, dict | list):
        return False
    spellings = {str(choice) for choice in choices}
    if str(value).strip() in spellings:
        return True
    # YAML 1.1 reads yes, no, on and off as booleans, in the documentation as in the task.
    lowered = {spelling.lower() for spelling in spellings}
    return any(str(value).lower() in words and lowered & words for words in (_TRUE, _FALSE))


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "empty" if value is None else type(value).__name__)
