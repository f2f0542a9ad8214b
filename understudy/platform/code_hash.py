"""Which code a step's result depends on, as one digest a step.

Followed statically from `understudy/platform/steps/<step>.py` through every import inside `understudy` and
`components`. Comments, docstrings and layout do not count. Plumbing that moves bytes or tells people what happens,
and the typed params (their values are in the config), do not count either: editing tracking, storage or the report
must not retrain a model.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from understudy.data.files import file_sha256
from understudy.evaluation.judge_target import find_target

STEPS = ("preflight", "ingest", "sft", "align", "evaluate", "register", "notify")
_ROOTS = ("understudy", "components")
# Not `platform.datasets`: it hands out bytes whose digests it checks, so it cannot change what a step reads.
_COUNTED_IN_PLATFORM = ("understudy.platform.steps",)
_NOT_COUNTED = ("understudy.config", "understudy.errors", "understudy.tracker")
# Libraries whose version changes numbers, by the name that is imported.
_LIBRARIES = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "accelerate": "accelerate",
    "peft": "peft",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "sacrebleu": "sacrebleu",
    "datasketch": "datasketch",
    "pyarrow": "pyarrow",
    "gguf": "gguf",
}


@cache
def code_sha256(step: str) -> str:
    """Return the digest of the code behind a step, and of the versions of the libraries that it computes with.

    Raises:
        ValueError: there is no such step.
    """
    if step not in STEPS:
        raise ValueError(f"{step!r} is not a step; the steps are {', '.join(STEPS)}")
    root = Path(__file__).parents[2]
    modules, libraries = reachable(root, f"understudy.platform.steps.{step}")
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(f"{name}\0{_meaning(modules[name])}\0".encode())
    for library in sorted(libraries):
        digest.update(f"{library}=={_version(library)}\0".encode())
    return digest.hexdigest()


def reachable(root: Path, start: str) -> tuple[dict[str, Path], set[str]]:
    """Return the modules (name → file) that `start` imports, directly or not, and the libraries they import.

    Imports inside functions count; imports under `if TYPE_CHECKING` do not.
    """
    modules: dict[str, Path] = {}
    libraries: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        path = _file_of(root, name)
        if name in modules or path is None or not _counts(name):
            continue
        modules[name] = path
        for imported in _imports(path, name):
            top = imported.split(".")[0]
            if top in _ROOTS:
                # "from a.b import c" may name a module c or a name in b; parents run as packages too.
                parts = imported.split(".")
                waiting += [".".join(parts[:length]) for length in range(2, len(parts) + 1)]
            elif top in _LIBRARIES:
                libraries.add(_LIBRARIES[top])
    return modules, libraries


def _counts(name: str) -> bool:
    if any(f"{name}.".startswith(f"{plumbing}.") for plumbing in _NOT_COUNTED):
        return False
    if name.startswith("understudy.platform.steps."):
        return True
    return not name.startswith("understudy.platform") or name in _COUNTED_IN_PLATFORM


def _file_of(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _imports(path: Path, name: str) -> list[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[str] = []
    waiting: list[ast.AST] = [ast.parse(path.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
        waiting += ast.iter_child_nodes(node)
    return found


@cache
def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"


def target_sha256(target: str) -> str | None:
    """Return the digest of the code a judge's target names ("file.py:function" or "module:function").

    No target, as exact_match has it, has none; neither has one that cannot be found, and preflight says so.
    """
    if not target:
        return None
    name = target.rpartition(":")[0] or target
    path = find_target(name)
    if path is None and not name.endswith(".py"):
        try:
            spec = find_spec(name)
        except (ImportError, ValueError):
            return None
        path = Path(spec.origin) if spec and spec.origin else None
    if path is None:
        return None
    if path.is_dir():
        return folder_sha256(path)
    return file_sha256(path) if path.is_file() else None


def folder_sha256(folder: Path, whole_below_bytes: int = 16 * 2**20) -> str:
    """Return a digest of a model folder: small files by content, large ones by size and time of change."""
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        state = path.stat()
        small = state.st_size < whole_below_bytes
        content = file_sha256(path) if small else f"{state.st_size}-{state.st_mtime_ns}"
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()
