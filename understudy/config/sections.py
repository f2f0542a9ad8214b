"""What all sections of the params share: frozen, strict about names, every problem told at once."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from understudy.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


# A "~" is expanded where params are read, so that what checks, digests and loads the path sees the same folder.
LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """Base of every section: frozen, strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def validate(model: type[M], data: Any, where: str, known: Sequence[str] = ()) -> M:
    """Validate `data`; raise one ConfigError that lists every problem, those already `known` first.

    An unknown key comes with the closest valid name.
    """
    problems, cause = list(known), None
    try:
        valid = model.model_validate(data)
        if not problems:
            return valid
    except ValidationError as error:
        problems += [_problem(model, item) for item in error.errors(include_url=False)]
        cause = error
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    raise ConfigError(f"{where}: {count}:\n" + "\n".join(f"  - {problem}" for problem in problems)) from cause


def section_sha256(*values: BaseModel | Mapping[str, Any] | str | int) -> str:
    """Digest of configuration values, independent of key order."""
    plain = [value.model_dump(mode="json") if isinstance(value, BaseModel) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `a.b=c` in nested sections, a mapping over a mapping as a preset's; raise ConfigError on another form."""
    key, separator, text = override.partition("=")
    if not separator or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, for example sft.epochs=2.")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error
    *parents, last = key.split(".")
    node = data
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if isinstance(child, list):
            raise ConfigError(f"--set {override!r}: {parent!r} is a list; give all of it, as {parent}=[…].")
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value ({child!r}), it has no keys below it.")
        node = child
    node.update(overlaid(node, {last: value}))


def overlaid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `under` with the values of `over` in it, mapping by mapping."""
    both = {
        name: overlaid(under[name], value) if isinstance(value, dict) and isinstance(under.get(name), dict) else value
        for name, value in over.items()
    }
    return under | both


def read_yaml(text: str) -> Any:
    """Parse YAML of plain values; a key that stands twice in one mapping is an error, not the last one's victory.

    Raises:
        yaml.YAMLError: the text is not such YAML.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a subclass of SafeLoader
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key in [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]:
            # As YAML reads it: `yes` and `true` are one key.
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, f"the key {name!r} stands twice", key.start_mark
                )
            seen.append(name)
        return super().construct_mapping(node, deep)


def did_you_mean(name: str, valid: Sequence[str], otherwise: str, prefix: str = "") -> str:
    """Ask whether the closest valid name was meant, its `prefix` before it; where none is close, say `otherwise`."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {prefix + close[0]!r}?" if close else otherwise


def _problem(model: type[BaseModel], item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    name = ".".join(location)
    if item["type"] == "extra_forbidden":
        valid = _field_names(model, location[:-1])
        above = "".join(f"{part}." for part in location[:-1])
        hint = did_you_mean(location[-1], valid, f"valid: {', '.join(valid)}", above)
        return f"{name}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{name}: missing; it has no default, state it"
    message = item["msg"].removeprefix("Value error, ")
    given = f" (given: {item['input']!r})" if not isinstance(item["input"], dict) else ""
    return f"{name or 'params'}: {message}{given}"


def _field_names(model: type[BaseModel], location: list[str]) -> list[str]:
    current: type[BaseModel] | None = model
    for part in location:
        field = current.model_fields.get(part) if current is not None else None
        if field is None:
            return sorted(current.model_fields) if current is not None else []
        options = (field.annotation, *get_args(field.annotation))
        options += tuple(inner for option in options for inner in get_args(option))
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        current = nested[0] if nested else current
    return sorted(current.model_fields) if current is not None else []
