"""Writes the fallback demonstrations: prompt = a function's signature, response = the first paragraph of its docstring.

    python -m examples.stdlib.extract --out .understudy/raw

They are read from the sources of the running Python's standard library, parsed and never imported, so nothing is
downloaded. There is no validity judge for prose: source.json says `"judge": null`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from examples.writing import write_json, write_jsonl, write_lengths

LICENCE = "PSF-2.0"
MAX_CHARS = 300
LIMIT = 2000
_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo")

Row = dict[str, Any]


def extract(library: Path, max_chars: int | None = MAX_CHARS, limit: int | None = LIMIT) -> list[Row]:
    """Return rows in a fixed order; a limit takes whole modules in an order decided by a digest."""
    rows: dict[tuple[str, str], Row] = {}
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if any(part in _LEFT_OUT for part in relative.parts):
            continue
        for row in _rows(path, ".".join(relative.with_suffix("").parts).removesuffix(".__init__")):
            if max_chars is None or len(row["response"]) <= max_chars:
                rows.setdefault((row["prompt"], row["response"]), row)
    order = sorted(rows.values(), key=lambda row: (hashlib.sha256(row["group"].encode()).digest(), row["id"]))
    return sorted(order[: limit or None], key=lambda row: (row["group"], row["id"]))


def write(out: Path, max_chars: int | None = MAX_CHARS, limit: int | None = LIMIT, reason: str | None = None) -> Row:
    """Write demonstrations.jsonl, lengths.csv and source.json into `out`; return what source.json says."""
    rows = extract(Path(sysconfig.get_paths()["stdlib"]), max_chars, limit)
    content = "".join(json.dumps(row, sort_keys=True) for row in rows)
    source = {
        "name": "cpython-stdlib-docstrings",
        "version": platform.python_version(),
        "file": None,
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        "licence": LICENCE,
        "judge": None,
        "fallback_because": reason,
        "rows": len(rows),
        "modules": len({row["group"] for row in rows}),
    }
    # dvc.yaml names the schema as an output whatever the source; one without modules decides nothing.
    write_json(out / "ansible_schema.json", {"ansible": None, "modules": {}, "redirects": {}})
    write_jsonl(out / "demonstrations.jsonl", rows)
    write_lengths(out / "lengths.csv", (row["response"] for row in rows))
    write_json(out / "source.json", source, indent=2)
    return source


def _rows(path: Path, module: str) -> Iterator[Row]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _functions(tree, module, "")


def _functions(scope: ast.AST, module: str, prefix: str) -> Iterator[Row]:
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, module, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
            prompt, response = f"{module}.{prefix}{node.name}({ast.unparse(node.args)})", " ".join(paragraph.split())
            if response and response.isprintable():
                digest = hashlib.sha256(f"{prompt}\0{response}".encode()).hexdigest()[:12]
                metadata = {"module": module, "function": f"{prefix}{node.name}"}
                row = {"id": f"{module}.{prefix}{node.name}-{digest}", "group": module, "prompt": prompt}
                yield {**row, "response": response, "metadata": metadata}


def main(argv: Iterable[str] | None = None) -> int:
    """Write the demonstrations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(".understudy/raw"))
    parser.add_argument("--max-chars", type=int, default=MAX_CHARS, help="longest response; 0 for no limit")
    parser.add_argument("--limit", type=int, default=LIMIT, help="number of rows, taken by whole modules; 0 for all")
    options = parser.parse_args(None if argv is None else list(argv))
    print(json.dumps(write(options.out, options.max_chars or None, options.limit or None), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
