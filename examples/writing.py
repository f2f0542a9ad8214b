"""Writes files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(aside, 0o644)  # mkstemp makes the file private
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write one JSON document, keys in their given order."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent, default=str) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_lengths(path: Path, texts: Iterable[str], width: int = 20) -> None:
    """Write a histogram of lengths in characters as CSV, for `dvc plots`; `chars` is a bin's lower edge."""
    counts = Counter(len(text) // width * width for text in texts)
    edges = range(0, max(counts, default=0) + width, width)
    write_text(path, "chars,rows\n" + "".join(f"{edge},{counts[edge]}\n" for edge in edges))
