"""The rules of the KFP API server that `kfp_api` enforces, without HTTP: errors, fields, cron, lists, parameters.

Read from kubeflow/pipelines 2.17.0 (backend/src/apiserver) and robfig/cron v1.2.0, which that server parses crons with.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote_plus

import kfp_server_api

# gRPC's code → the HTTP status of grpc-gateway.
HTTP_STATUS = {3: 400, 5: 404, 6: 409, 7: 403, 10: 409, 12: 501, 13: 500, 14: 503, 16: 401}
INVALID, NOT_FOUND, EXISTS, DENIED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 3, 5, 6, 7, 12, 13, 14, 16
PREFIX = {INVALID: "Invalid input error", NOT_FOUND: "ResourceNotFoundError", EXISTS: "Already exist error"}
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 20, 200
OPERATIONS = {
    "EQUALS": 1,
    "NOT_EQUALS": 2,
    "GREATER_THAN": 3,
    "GREATER_THAN_EQUALS": 5,
    "LESS_THAN": 6,
    "LESS_THAN_EQUALS": 7,
    "IN": 8,
    "IS_SUBSTRING": 9,
}


class Refusal(Exception):
    """One refused request: gRPC's code and what the client is told."""

    def __init__(self, code: int, message: str, *outer: str):
        self.code, self.message, self.outer = code, message, outer
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """Return grpc-gateway's error: the wrapped internal message, and the external one in `details`."""
        internal = f"{PREFIX[self.code]}: {self.message}" if self.code in PREFIX else self.message
        detail = {"@type": "type.googleapis.com/google.rpc.Status", "code": self.code, "message": self.message}
        return {"code": self.code, "message": ": ".join([*self.outer, internal]), "details": [detail]}


def known_fields(model: str, body: dict[str, Any]) -> None:
    """Refuse what protojson refuses: a field that the message does not have (`DiscardUnknown: false`)."""
    names = set(getattr(kfp_server_api, model).attribute_map.values())
    camel = {re.sub(r"_(\w)", lambda match: match.group(1).upper(), name) for name in names}
    for name in body:
        if name not in names | camel:
            raise Refusal(INVALID, f'proto: (line 1:2): unknown field "{name}"')


# cron: robfig/cron v1.2.0, Parse
MONTHS = {name: index + 1 for index, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split())}
DAYS = {name: index for index, name in enumerate("sun mon tue wed thu fri sat".split())}
BOUNDS: list[tuple[int, int, dict[str, int]]] = [
    (0, 59, {}),
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, MONTHS),
    (0, 6, DAYS),
]
DESCRIPTORS = {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}


def parse_cron(spec: str) -> list[set[int]] | None:
    """Return the six sets of values, None for a descriptor; five fields lack the weekday, as in robfig's Parse.

    Raises:
        ValueError: with robfig's words.
    """
    if not spec:
        raise ValueError("Empty spec string")
    if spec.startswith("@"):
        if spec in DESCRIPTORS or re.fullmatch(r"@every ([0-9.]+(ns|us|ms|s|m|h))+", spec):
            return None
        raise ValueError(f"Unrecognized descriptor: {spec}")
    fields = spec.split()
    if not 5 <= len(fields) <= 6:
        raise ValueError(f"Expected 5 to 6 fields, found {len(fields)}: {spec}")
    fields += ["*"] * (6 - len(fields))
    return [
        set().union(*(_range(expression, *bounds) for expression in field.split(",") if expression))
        for field, bounds in zip(fields, BOUNDS, strict=True)
    ]


def _range(expression: str, low: int, high: int, names: dict[str, int]) -> set[int]:
    range_and_step = expression.split("/")
    ends = range_and_step[0].split("-")
    if ends[0] in ("*", "?"):
        start, end = low, high
    else:
        if len(ends) > 2:
            raise ValueError(f"Too many hyphens: {expression}")
        start, end = _number(ends[0], names), _number(ends[-1], names)
    if len(range_and_step) > 2:
        raise ValueError(f"Too many slashes: {expression}")
    step = 1
    if len(range_and_step) == 2:
        step = _number(range_and_step[1], {})
        end = high if len(ends) == 1 else end
    if start < low:
        raise ValueError(f"Beginning of range ({start}) below minimum ({low}): {expression}")
    if end > high:
        raise ValueError(f"End of range ({end}) above maximum ({high}): {expression}")
    if start > end:
        raise ValueError(f"Beginning of range ({start}) beyond end of range ({end}): {expression}")
    if step == 0:
        raise ValueError(f"Step of range should be a positive number: {expression}")
    return set(range(start, end + 1, step))


def _number(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f'Failed to parse int from {text}: strconv.Atoi: parsing "{text}": invalid syntax')
    if int(text) < 0:
        raise ValueError(f"Negative number ({int(text)}) not allowed: {text}")
    return int(text)


# a pipeline's parameters: template/v2_template.go, validatePipelineJobInputs
TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "NUMBER_DOUBLE": (
        "double or integer",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    ),
    "NUMBER_INTEGER": (
        "double or integer",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    ),
    "STRING": ("string", lambda value: isinstance(value, str)),
    "BOOLEAN": ("bool", lambda value: isinstance(value, bool)),
    "LIST": ("list", lambda value: isinstance(value, list)),
    "STRUCT": ("struct", lambda value: isinstance(value, dict)),
}


def check_parameters(spec: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse missing, unknown and wrongly typed parameters of a pipeline spec, in the server's words."""
    spec = spec.get("pipeline_spec", spec)
    expected = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    for name, parameter in expected.items():
        if name not in given:
            if not parameter.get("isOptional") and "defaultValue" not in parameter:
                message = f"parameter {name} is not optional, yet has neither default value nor user provided value"
                raise Refusal(INVALID, message)
            continue
        words, accepts = TYPES[parameter["parameterType"]]
        if not accepts(given[name]):
            kind = {"double or integer": "number"}.get(words, words)
            message = (
                f"input parameter {name} requires type {words}, but the parameter value is not of {kind} value type"
            )
            raise Refusal(INVALID, message)
    if extra := [name for name in given if name not in expected]:
        raise Refusal(INVALID, f"parameter(s) provided are not required by pipeline: {', '.join(extra)}")


def page(
    rows: Iterable[dict[str, Any]], query: dict[str, str], key: str, fields: Iterable[str]
) -> tuple[list[dict[str, Any]], int, str]:
    """Return one page of rows, the total and the next token; sorted by creation, then by key, as the server does."""
    wanted = (query.get("sort_by", ""), query.get("filter", ""))
    first = None
    if token := query.get("page_token"):
        try:
            state = json.loads(base64.b64decode(token, validate=True))
            sort_by, filter_text, first = state["sort_by"], state["filter"], state["first"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(INVALID, "Invalid page token") from error
        if any(wanted) and wanted != (sort_by, filter_text):
            raise Refusal(INVALID, "page token does not match the supplied sort by and/or filtering criteria")
    else:
        sort_by, filter_text = wanted
    size = int(query.get("page_size") or 0)
    if size < 0:
        raise Refusal(INVALID, f"The page size should be greater than 0. Got {size}")
    size = min(size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    name, descending = _order(sort_by, set(fields))
    chosen = [row for row in rows if _matches(row, filter_text, set(fields))]
    chosen.sort(key=lambda row: (row.get(name) or "", row[key]), reverse=descending)
    start = 0
    if first is not None:
        start = next((index for index, row in enumerate(chosen) if row[key] == first), len(chosen))
    rest = chosen[start + size :]
    state = {"sort_by": sort_by, "filter": filter_text, "first": rest[0][key]} if rest else None
    following = base64.b64encode(json.dumps(state).encode()).decode() if state else ""
    return chosen[start : start + size], len(chosen), following


def _order(sort_by: str, fields: set[str]) -> tuple[str, bool]:
    words = sort_by.lower().split()
    if len(words) > 2 or (len(words) == 2 and words[1] not in ("asc", "desc")):
        supported = '"field_name", "field_name desc", or "field_name asc"'
        raise Refusal(INVALID, f'Received invalid sort by format "{sort_by}". Supported format: {supported}')
    name = words[0] if words else "created_at"
    if name not in fields:
        raise Refusal(INVALID, f'Invalid sorting field: "{name}"')
    return name, len(words) == 2 and words[1] == "desc"


def _matches(row: dict[str, Any], filter_text: str, fields: set[str]) -> bool:
    if not filter_text:
        return True
    try:
        predicates = json.loads(unquote_plus(filter_text)).get("predicates", [])
    except (ValueError, AttributeError) as error:
        raise Refusal(INVALID, f'failed to parse valid filter from "{filter_text}": {error}') from error
    return all(_holds(row, predicate, fields) for predicate in predicates)


def _holds(row: dict[str, Any], predicate: dict[str, Any], fields: set[str]) -> bool:
    if predicate.get("key") not in fields:
        raise Refusal(INVALID, f'no support for filtering on unrecognized field "{predicate.get("key")}"')
    operation = predicate.get("operation")
    code = OPERATIONS.get(operation, operation) if isinstance(operation, str) else operation
    snake = {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(): value for name, value in predicate.items()}
    value = next((snake[name] for name in snake if name.endswith(("_value", "_values"))), None)
    if code not in OPERATIONS.values() or value is None:
        raise Refusal(INVALID, f"failed to parse valid filter from {predicate}")
    have = str(row.get(predicate["key"], "")).lower()
    if code == OPERATIONS["IN"]:
        return have in [str(item).lower() for item in value["values"]]
    text = str(value).lower()
    tests: dict[int, bool] = {
        1: have == text,
        2: have != text,
        3: have > text,
        5: have >= text,
        6: have < text,
        7: have <= text,
        9: text in have,
    }
    return tests[code]
