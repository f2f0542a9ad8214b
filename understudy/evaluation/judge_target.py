"""What a judge's target names: one lookup for preflight, digests and loading; imports nothing heavy."""

from __future__ import annotations

import ast
from pathlib import Path

import understudy


def target_places(place: str, root: Path | None = None) -> list[Path]:
    """Return where a file or folder may lie: below `root`, by default the current folder, else beside the package."""
    project = Path(understudy.__file__).resolve().parent.parent
    return list(dict.fromkeys(folder / place for folder in (root or Path.cwd(), project)))


def find_target(place: str, root: Path | None = None) -> Path | None:
    """Return the file or folder, None where there is none."""
    return next((path for path in target_places(place, root) if path.exists()), None)


def top_level_names(source: bytes) -> set[str]:
    """Return the names that a module binds outside of functions and classes; "*" where it imports all of another's.

    Raises:
        SyntaxError, ValueError: it is no Python.
    """
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            waiting += ast.iter_child_nodes(node)
    return names
