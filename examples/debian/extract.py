"""Writes prose demonstrations: prompt = a Debian package's name and one-line summary, response = its long description.

    python -m examples.debian.extract --out .understudy/debian            # asks apt for the package lists first
    python -m examples.debian.extract --lists FOLDER --out .understudy/debian

The lists are those of the machine's own apt sources, fetched at run time into a folder of their own (the system's are
not touched) and never part of this repository: a description is its package's and licensed as that. The group is the
description's first paragraph, letters and digits only: packages of one source often share it, and what is shared is
either trained on or held out. There is no validity judge for prose; similarity.py says how near a response is to the
reference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from examples.writing import write_json, write_jsonl, write_lengths

MAX_CHARS, LIMIT = 600, 0
MIN_CHARS = 60
_HELPER = "/usr/lib/apt/apt-helper"
_LISTS = re.compile(r"_i18n_Translation-en(\.(lz4|xz|gz|bz2|zst))?$")

Row = dict[str, Any]


class ListsUnavailable(Exception):
    """apt is not here, or could not fetch the lists."""


def fetch_lists(folder: Path) -> Path:
    """Let apt fetch the English descriptions of its sources into `folder`; return the folder.

    Raises:
        ListsUnavailable: with what apt said.
    """
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State::Lists={folder.resolve()}", "Acquire::Languages=en", "APT::Sandbox::User="]
    command = ["apt-get", "update", "-q", *(part for option in options for part in ("-o", option))]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ListsUnavailable(f"apt-get cannot be started: {error}. It takes a Debian system.") from error
    if not find_lists(folder):
        said = (result.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise ListsUnavailable(f"apt-get update ended with {result.returncode} and left no Translation-en: {said}")
    return folder


def find_lists(folder: Path) -> list[Path]:
    """Files of English descriptions in a folder of apt lists, by name."""
    return sorted(path for path in folder.iterdir() if _LISTS.search(path.name)) if folder.is_dir() else []


def extract(texts: Iterable[str], max_chars: int | None = MAX_CHARS, limit: int | None = None) -> list[Row]:
    """Return one row a package in a fixed order; a limit takes whole groups in an order decided by a digest."""
    found: dict[str, tuple[str, str]] = {}
    for text in texts:
        for name, short, long in _stanzas(text):
            found.setdefault(name, (short, long))
    rows = [
        _row(name, short, long)
        for name, (short, long) in found.items()
        if MIN_CHARS <= len(long) <= (max_chars or len(long))
    ]
    order = sorted(rows, key=lambda row: (hashlib.sha256(row["group"].encode()).digest(), row["id"]))
    return sorted(order[: limit or None], key=lambda row: row["id"])


def write(out: Path, lists: Path | None, max_chars: int | None = MAX_CHARS, limit: int | None = None) -> Row:
    """Write demonstrations.jsonl, lengths.csv and source.json into `out`; return what source.json says.

    Raises:
        ListsUnavailable: there are no lists, and apt gave none; nothing is written then.
    """
    found = find_lists(lists if lists is not None else fetch_lists(out / "lists"))
    if not found:
        raise ListsUnavailable(f"{lists} holds no file *_i18n_Translation-en. Leave out --lists to let apt fetch them.")
    rows = extract(map(_read, found), max_chars, limit)
    source = {
        "name": "debian-package-descriptions",
        "files": [path.name for path in found],
        "sha256": hashlib.sha256("".join(json.dumps(row, sort_keys=True) for row in rows).encode()).hexdigest(),
        "licence": "each description that of its package",
        "judge": None,
        "rows": len(rows),
        "groups": len({row["group"] for row in rows}),
    }
    write_jsonl(out / "demonstrations.jsonl", rows)
    write_lengths(out / "lengths.csv", (row["response"] for row in rows), width=50)
    write_json(out / "source.json", source, indent=2)
    return source


def _row(name: str, short: str, long: str) -> Row:
    opening = re.sub(r"\W+", "", long.split("\n")[0].casefold())
    return {
        "id": name,
        "group": hashlib.sha256(opening.encode()).hexdigest()[:16],
        "prompt": f"{name}: {short}",
        "response": long,
        "metadata": {"package": name},
    }


def _stanzas(text: str) -> Iterator[tuple[str, str, str]]:
    """Package, short and long description of each stanza; those that lack one are left out."""
    for stanza in text.split("\n\n"):
        name, short, body, inside = "", "", list[str](), False
        for line in stanza.splitlines():
            if line.startswith("Package: "):
                name, inside = line.removeprefix("Package: ").strip(), False
            elif line.startswith("Description-en: "):
                short, inside = line.removeprefix("Description-en: ").strip(), True
            elif inside and line.startswith(" "):
                body.append(line[1:])
            else:
                inside = False
        if name and short and body:
            yield name, short, _prose(body)


def _prose(lines: list[str]) -> str:
    """Folded lines joined to paragraphs, one a line; lists and verbatim lines (indented once more) keep theirs."""
    paragraphs, open_ = list[str](), False
    for line in lines:
        text = line.strip()
        if text == ".":
            open_ = False
        elif open_ and not line.startswith(" ") and not text.startswith(("* ", "- ")):
            paragraphs[-1] += f" {text}"
        else:
            paragraphs.append(text)
            open_ = not line.startswith(" ")
    return "\n".join(paragraphs)


def _read(path: Path) -> str:
    if not path.suffix or path.name.endswith("Translation-en"):
        return path.read_text(encoding="utf-8", errors="replace")
    # apt's own reader knows every compression that apt writes.
    result = subprocess.run([_HELPER, "cat-file", str(path)], capture_output=True, check=False)
    if result.returncode:
        raise ListsUnavailable(f"{path.name} cannot be read: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout.decode("utf-8", errors="replace")


def main(argv: Iterable[str] | None = None) -> int:
    """Write the demonstrations; 5 when the lists cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(".understudy/debian"))
    parser.add_argument("--lists", type=Path, help="folder of apt lists; default: apt fetches them into OUT/lists")
    parser.add_argument("--max-chars", type=int, default=MAX_CHARS, help="longest response; 0 for no limit")
    parser.add_argument("--limit", type=int, default=LIMIT, help="number of rows, taken by whole groups; 0 for all")
    options = parser.parse_args(None if argv is None else list(argv))
    try:
        source = write(options.out, options.lists, options.max_chars or None, options.limit or None)
    except ListsUnavailable as error:
        print(error, file=sys.stderr)
        return 5
    print(json.dumps(source, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
