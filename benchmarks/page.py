"""The tables of docs/speed.md from the raw numbers in benchmarks/results/; what stands between them is written by hand.

python -m benchmarks.page [--check]

Of several runs the latest that measured a row counts, with the bar of today.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.table import bar_of, bar_text, load_text, met_text, peer_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "speed.md"
RESULTS = Path(__file__).parent / "results"
PEER_SUITES = ("sampling", "align", "sft")
_BLOCK = re.compile(r"(<!-- begin (\w+)[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    text = PAGE.read_text(encoding="utf-8")
    wanted = rendered(text, latest(RESULTS))
    if "--check" in arguments:
        if text == wanted:
            return 0
        print("docs/speed.md is not what benchmarks/results/ says; run `python -m benchmarks.page`", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def latest(folder: Path) -> list[Row]:
    """The last measurement of every row, each with the machine of its run; quick runs do not count."""
    found: dict[tuple[str, str], Row] = {}
    for path in sorted(folder.glob("cpu-2*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        for row in report["rows"]:
            key = (row["name"], peer_of(row))
            found[key] = row | {"bar": bar_of(row), "machine": report["machine"], "file": path.name}
    return list(found.values())


def rendered(text: str, rows: list[Row]) -> str:
    """The page with its blocks filled anew.

    Raises:
        ValueError: the page names a block that is not known.
    """

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        if name not in BLOCKS:
            raise ValueError(f"docs/speed.md has a block {name!r}; there are {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[name](rows)}\n{match[3]}"

    return _BLOCK.sub(fill, text)


def machine(rows: list[Row]) -> str:
    """One line for each run that a row comes from, with the suites that do."""
    runs = {row["file"]: row["machine"] for row in rows}
    suites = {file: ", ".join(dict.fromkeys(row["suite"] for row in rows if row["file"] == file)) for file in runs}
    together = {row["file"] for row in rows if row["suite"] in PEER_SUITES and "process" not in row}
    return "\n".join(
        f"- `{file}` ({suites[file]}): {at['processor']}, {at['threads']} thread of {at['logical_cores']} cores, "
        f"{at['memory_gib']} GiB, {at['matrix_gflops']} GFLOP/s in a matrix product, "
        f"{at['memory_gb_per_second']} GB/s from memory; Python {at['python']}, torch {at['torch']}, "
        f"transformers {at['transformers']}, TRL {at['trl']}; commit {at['commit']}, {at['time']}"
        + ("; ours and its peers took turns within one process" if file in together else "")
        for file, at in sorted(runs.items())
    )


def peers(rows: list[Row]) -> str:
    """Ours, the peer, the ratio, the floor, the bar and whether it is met."""
    chosen = [row for suite in PEER_SUITES for row in rows if row["suite"] == suite]
    head = ("work", "unit", "peer", "ours", "peer's", "ratio", "of turns", "bar", "met", "floor", "of floor", "load")
    return _table(
        head,
        [
            (
                row["name"],
                row["unit"],
                row["peer_name"],
                *_compared(row),
                bar_text(row),
                _met(row),
                _number(row["floor"]),
                f"{row['ours'] / row['floor']:.0%}" if row["floor"] else "",
                _load(row),
            )
            for row in chosen
        ],
    )


def processes(rows: list[Row]) -> str:
    """Two processes against one."""
    head = ("work", "unit", "2 processes", "1 process", "ratio", "of turns", "load")
    chosen = [row for row in rows if row["suite"] == "processes"]
    return _table(
        head,
        [
            (
                row["name"],
                row["unit"],
                *_compared(row),
                _load(row),
            )
            for row in chosen
        ],
    )


def shards(rows: list[Row]) -> str:
    """Two shards against one process."""
    head = ("one file", "rows/s, 2 shards", "1 process", "ratio", "of turns", "MiB, 2 shards", "1 process", "load")
    return _table(
        head,
        [
            (
                row["name"],
                *_compared(row),
                _number(row["peak_mib"]["two"]),
                _number(row["peak_mib"]["one"]),
                _load(row),
            )
            for row in rows
            if row["suite"] == "shards"
        ],
    )


def ingest(rows: list[Row]) -> str:
    """Rows a second and memory."""
    head = ("work", "rows/s of one core", "of turns", "bar", "met", "by the wall clock", "MiB above start", "load")
    return _table(
        head,
        [
            (
                row["name"],
                _number(row["ours"]),
                _turns(row["turns"], "{:,.0f}"),
                bar_text(row),
                _met(row),
                _number(row.get("rows_per_wall_second")),
                _number(row.get("peak_mib_above_start")),
                _load(row),
            )
            for row in rows
            if row["suite"] == "ingest"
        ],
    )


def scale(rows: list[Row]) -> str:
    """One table for each axis: seconds of a round, peak memory, the formula's, and exponents."""
    parts = []
    for row in rows:
        if row["suite"] != "scale":
            continue
        axis = row["name"].removeprefix("align step over ")
        points = [
            (_number(p["at"]), f"{p['seconds']:.2f}", _number(p["peak_mib"]), _number(p["formula_mib"]))
            for p in row["points"]
        ]
        table = _table((axis, "seconds a round", "peak MiB above start", "formula MiB"), points)
        parts.append(
            f"{table}\n\nSeconds grow with the power {row['ours']:.2f} over all points ({row['last_exponent']:.2f} "
            f"between the last two), memory with {row['memory_exponent']:.2f}; load {_load(row)}."
        )
    return "\n\n".join(parts)


def dag(rows: list[Row]) -> str:
    """Seconds of each step, and how many of them were training, sampling or scoring."""
    return "\n\n".join(_run(row) for row in rows if row["suite"] == "dag")


def _run(row: Row) -> str:
    steps = [
        (step, f"{seconds:.2f}", f"{row['working_seconds'].get(step, 0.0):.2f}")
        for step, seconds in row["step_seconds"].items()
    ]
    run = row["name"].removeprefix("DAG outside training, ")
    table = _table((f"step of the {run}", "seconds", "of these training, sampling, scoring"), steps)
    between = row["wall_seconds"] - sum(row["step_seconds"].values())
    return (
        f"{table}\n\nWhole run {row['wall_seconds']:.1f} s, of which {between:.1f} s between the steps and "
        f"{row['ours']:.1f} s outside training in all; again from the cache {row['cached_seconds']:.1f} s; load "
        f"{_load(row)}."
    )


def profile(rows: list[Row]) -> str:
    """Phases of a round with the lines that do them, and torch's operations."""
    parts = []
    for row in rows:
        if "phases" not in row:
            continue
        total = sum(phase["seconds"] for phase in row["phases"].values())
        phases = [
            (name, f"{phase['seconds']:.2f}", f"{phase['seconds'] / total:.0%}", f"`{phase['where']}`")
            for name, phase in row["phases"].items()
        ]
        table = _table((row["name"].removeprefix("profile of the "), "seconds", "share", "where"), phases)
        operations = ", ".join(f"`{name}` {share:.0%}" for name, share in row["operations"].items())
        parts.append(f"{table}\n\nBy torch's own operations: {operations}. Load {_load(row)}.")
    return "\n\n".join(parts)


def lines(rows: list[Row]) -> str:
    """The lines of a part's library code that take the most time."""
    return "\n\n".join(_lines(row) for row in rows if row["suite"] == "profile" and "lines" in row)


def _lines(row: Row) -> str:
    shares = [line["share"] for line in row["lines"]]
    cells = [
        # A bar would end the cell, within code, too.
        (f"{line['share']:.1%}", f"`{line['path']}: {line['function']}`", f"`{line['text']}`".replace("|", r"\|"))
        for line in row["lines"]
    ]
    table = _table((f"share of the {row['name'].removeprefix('profile of the ')}", "where", "line"), cells)
    return f"{table}\n\nAll other lines take {1 - sum(shares):.0%}, none above {shares[-1]:.1%}. Load {_load(row)}."


BLOCKS: dict[str, Callable[[list[Row]], str]] = {
    "machine": machine,
    "peers": peers,
    "processes": processes,
    "ingest": ingest,
    "shards": shards,
    "scale": scale,
    "dag": dag,
    "profile": profile,
    "lines": lines,
}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _compared(row: Row) -> tuple[str, str, str, str]:
    """Ours, the peer's, their ratio, and its turns."""
    turns = _turns(row["ratios"], "{:.2f}")
    return _number(row["ours"]), _number(row["peer"]), f"{row['ratio']:.2f}", turns


def _turns(values: list[float], how: str) -> str:
    """How many turns there were, and the least and the most of them."""
    return f"{len(values)}: {how.format(min(values))} to {how.format(max(values))}"


def _met(row: Row) -> str:
    return met_text(row).replace("no", "**no**")


def _load(row: Row) -> str:
    return load_text(row).replace("busy", "**busy**")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
