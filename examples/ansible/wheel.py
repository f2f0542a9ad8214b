"""Reads the documentation inside the ansible wheel as data: a zip of Python sources, never imported or run.

A module documents itself in two string constants, DOCUMENTATION and EXAMPLES (both YAML). Options shared by
many modules live in doc fragments, which a module names under `extends_documentation_fragment`.
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

ROOT = "ansible_collections"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# The keys of an option's documentation that the judge can check.
_OPTION_KEYS = ("type", "elements", "choices", "aliases", "required")
_ENVIRONMENT = re.compile(r"\bE\(|environment variable|\benv(ironment)? var", re.IGNORECASE)


@dataclass(frozen=True)
class Module:
    """One module: its documented options, and the tasks of its EXAMPLES block in their order."""

    fqcn: str
    options: dict[str, Any]
    complete: bool  # False where a fragment is not in the wheel: more options than these may exist
    tasks: tuple[dict[str, Any], ...]


class Wheel:
    """The collections, modules and doc fragments of one ansible wheel."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._modules: dict[str, dict[str, str]] = {}
        for name in sorted(self._zip.namelist()):
            parts = PurePosixPath(name).parts
            if len(parts) < 6 or parts[0] != ROOT or parts[3:5] != ("plugins", "modules"):
                continue
            stem, suffix = PurePosixPath(parts[-1]).stem, PurePosixPath(parts[-1]).suffix
            if suffix in (".py", ".yml") and stem != "__init__":
                collection = f"{parts[1]}.{parts[2]}"
                self._modules.setdefault(collection, {}).setdefault(f"{collection}.{stem}", name)

    @property
    def collections(self) -> list[str]:
        """Names of all collections that hold modules."""
        return sorted(self._modules)

    def modules(self, collection: str) -> Iterator[Module]:
        """Read the modules of one collection, in the order of their names; the undocumented are left out."""
        for fqcn, member in sorted(self._modules[collection].items()):
            documentation, examples = self._texts(member)
            document = _load(documentation)
            if isinstance(document, dict):
                options, complete = self._options(collection, document)
                yield Module(fqcn, options, complete, tuple(_tasks(_load(examples))))

    def redirects(self, collection: str) -> dict[str, str]:
        """Old module names that the collection still accepts, and what they are called now."""
        namespace, name = collection.split(".")
        runtime = _load(self._text(f"{ROOT}/{namespace}/{name}/meta/runtime.yml"))
        try:
            routes = runtime["plugin_routing"]["modules"]
        except (KeyError, TypeError):
            return {}
        pairs = ((old, (route or {}).get("redirect")) for old, route in routes.items())
        return {f"{collection}.{old}": new for old, new in pairs if isinstance(new, str)}

    def _text(self, member: str) -> str:
        try:
            return self._zip.read(member).decode("utf-8", errors="replace")
        except KeyError:
            return ""

    def _texts(self, member: str) -> tuple[str, str]:
        if member.endswith(".yml"):
            sidecar = _load(self._text(member))
            if not isinstance(sidecar, dict):
                return "", ""
            return yaml.safe_dump(sidecar.get("DOCUMENTATION")), str(sidecar.get("EXAMPLES", ""))
        constants = _string_constants(_parse(self._text(member)))
        return constants.get("DOCUMENTATION", ""), constants.get("EXAMPLES", "")

    def _options(self, collection: str, document: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """Own options over those of the fragments, as ansible merges them (the module's own words win)."""
        named = document.get("extends_documentation_fragment") or []
        names = [part.strip() for part in named.split(",")] if isinstance(named, str) else list(named)
        fragments = [self._fragment(collection, str(name)) for name in names]
        own = document.get("options") or {}
        merged: dict[str, Any] = {}
        for options in [*(fragment for fragment in fragments if fragment is not None), own]:
            for name, option in options.items():
                merged[str(name)] = {**merged.get(str(name), {}), **(option or {})}
        return {name: _slim(option) for name, option in merged.items()}, None not in fragments

    @functools.cache  # noqa: B019 - one Wheel lives as long as the extraction
    def _fragment(self, collection: str, name: str) -> dict[str, Any] | None:
        """Options of a fragment `[namespace.collection.]file[.ATTRIBUTE]`; None where the wheel lacks it."""
        parts = name.split(".")
        if len(parts) >= 3:
            collection, parts = ".".join(parts[:2]), parts[2:]
        if parts[0] == "action_common_attributes":  # of ansible-core: describes attributes, never options
            return {}
        attribute = parts[1].upper() if len(parts) > 1 else "DOCUMENTATION"
        namespace, short = collection.split(".")
        source = self._text(f"{ROOT}/{namespace}/{short}/plugins/doc_fragments/{parts[0]}.py")
        for node in _parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name == "ModuleDocFragment":
                text = _string_constants(node).get(attribute)
                document = _load(text) if text is not None else None
                return (document.get("options") or {}) if isinstance(document, dict) else None
        return None


def _parse(source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(source)
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _string_constants(scope: ast.Module | ast.ClassDef) -> dict[str, str]:
    """Names bound to text in a module or class body, and in a class's `__init__` (`self.NAME = ...`)."""
    constants: dict[str, str] = {}
    statements = list(scope.body)
    if isinstance(scope, ast.ClassDef):
        for node in scope.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                statements += node.body
    for statement in statements:
        if not (isinstance(statement, ast.Assign) and len(statement.targets) == 1):
            continue
        name, text = _target_name(statement.targets[0]), _folded(statement.value, constants)
        if name is not None and text is not None:
            constants[name] = text
    return constants


def _target_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def _folded(node: ast.expr, constants: Mapping[str, str]) -> str | None:
    """The text an expression stands for, folded by hand; what an f-string inserts becomes `x`."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name | ast.Attribute):
        return constants.get(_target_name(node) or "")
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _folded(node.left, constants), _folded(node.right, constants)
        return left + right if left is not None and right is not None else None
    return None


def _load(text: str) -> Any:
    """Parse YAML; None where it is not valid (some EXAMPLES blocks are prose) or holds more than one document."""
    try:
        return yaml.load(text, _LOADER)
    except (yaml.YAMLError, ValueError):
        return None


def _slim(option: Any) -> dict[str, Any]:
    if not isinstance(option, dict):
        return {}
    slim: dict[str, Any] = {key: option[key] for key in _OPTION_KEYS if option.get(key)}
    if _ENVIRONMENT.search(str(option.get("description", ""))):
        slim.pop("required", None)  # documented as required, and as read from the environment if not given
    if isinstance(slim.get("aliases"), str):
        slim["aliases"] = [slim["aliases"]]
    if isinstance(slim.get("choices"), dict):  # choices may be documented one by one
        slim["choices"] = list(slim["choices"])
    suboptions = option.get("suboptions") or option.get("options")
    if isinstance(suboptions, dict):
        slim["options"] = {str(name): _slim(inner) for name, inner in suboptions.items()}
    return slim


def _tasks(examples: Any) -> Iterator[dict[str, Any]]:
    """Tasks of an EXAMPLES block, those inside plays and blocks included."""
    for item in examples if isinstance(examples, list) else []:
        if not isinstance(item, dict):
            continue
        nested = [item[key] for key in ("pre_tasks", "tasks", "post_tasks", "block", "rescue", "always") if key in item]
        if nested:
            for tasks in nested:
                yield from _tasks(tasks)
        else:
            yield item
