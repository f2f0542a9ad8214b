"""The table that `make bench` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

# Ratios to a peer, or speeds, that the project asks of itself on a CPU: docs/speed.md says which are met.
BARS = {
    "sampling 1M": 1.4,
    "sampling 1M, rows that end": 1.0,
    "sampling 10M": 1.0,
    "align step 1M/TRL RLOO": 2.0,
    "align step 10M/TRL RLOO": 1.3,
    "align step 1M, trunk of its own/TRL RLOO": 2.0,
    "align step 10M, trunk of its own/TRL RLOO": 1.3,
    "SFT 1M/TRL SFT": 1.2,
    "SFT 10M/TRL SFT": 1.2,
    "ingest 10,000 rows": 50_000,
    "ingest 100,000 rows": 50_000,
    "ingest 1,000,000 rows": 50_000,
}
_BUSY = 1.5  # a load average that another program must have a part in


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the machine, then a row for each measurement."""
    if console is None:
        console = Console()
        # In a file or a log, lines need not break where a terminal would end.
        console = console if console.is_terminal else Console(width=150)
    machine = report["machine"]
    console.print(
        f"{machine['processor']}, {machine['threads']} thread of {machine['logical_cores']} cores, "
        f"{machine['memory_gib']} GiB; {machine['matrix_gflops']} GFLOP/s in a matrix product, "
        f"{machine['memory_gb_per_second']} GB/s from memory; load {machine['load_average'][0]:.1f}; "
        f"torch {machine['torch']}, transformers {machine['transformers']}, TRL {machine['trl']}"
    )
    table = Table("work", "unit", "peer", title="Understudy beside its peers")
    for name in ("ours", "peer's", "ratio", "bar", "met", "floor", "load"):
        table.add_column(name, justify="right")
    for row in report["rows"]:
        table.add_row(
            row["name"],
            row["unit"],
            row.get("peer_name") or "",
            _number(row["ours"]),
            _number(row["peer"]),
            _ratio(row),
            bar_text(row),
            met_text(row),
            _number(row["floor"]),
            load_text(row),
        )
    console.print(table)


def _ratio(row: dict[str, Any]) -> str:
    if row["ratio"] is None:
        return ""
    text = f"{row['ratio']:.2f}"
    if row["bar"] is None:
        return text
    return f"[green]{text}[/]" if meets(row) else f"[red]{text}[/]"


def bar_of(row: dict[str, Any]) -> float | None:
    """The ratio or the speed that is asked of a row."""
    return BARS.get(f"{row['name']}/{peer_of(row)}", BARS.get(row["name"]))


def peer_of(row: dict[str, Any]) -> str:
    """Whom a row compares with, without the way of it that was the fastest."""
    return (row.get("peer_name") or "").split(",")[0]


def meets(row: dict[str, Any]) -> bool | None:
    """Whether a row meets its bar: a ratio where there is a peer, else a speed; None without one."""
    if row["bar"] is None:
        return None
    value = row["ours"] if row["ratio"] is None else row["ratio"]
    return bool(value >= row["bar"])


def bar_text(row: dict[str, Any]) -> str:
    """The bar: a ratio such as 1.4, or a speed such as 50,000."""
    if row["bar"] is None:
        return ""
    return f"{row['bar']:,.0f}" if row["ratio"] is None else f"{row['bar']:.1f}"


def met_text(row: dict[str, Any]) -> str:
    """Whether a row meets its bar, in a word; nothing where it has none."""
    return {True: "yes", False: "no", None: ""}[meets(row)]


def load_text(row: dict[str, Any]) -> str:
    """Of the minute before and the last minute of the row's suite; whether the machine was busy before it."""
    before, after = row["load_average_before"][0], row["load_average_after"][0]
    return f"{before:.1f} to {after:.1f}{', busy' if before > _BUSY else ''}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
