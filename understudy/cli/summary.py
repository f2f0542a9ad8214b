"""What a person decides by, at the end of a run: one small table, the verdict, where the report and the model are.

Everything that was measured is in the report and in `--json`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from understudy.cli.live import near
from understudy.cli.numbers import duration, number
from understudy.evaluation.names import EXPERT_TEXT
from understudy.platform.local_run import RunResult

Values = Mapping[str, Any]
# (policy, decoding) → heading, in order of display.
COLUMNS = {
    ("sft", "T=1"): "SFT\nT=1",
    ("sft", "tuned"): "SFT\ntuned",
    ("sft_longer", "tuned"): "SFT longer\ntuned",
    ("aligned", "T=1"): "aligned\nT=1",
    ("aligned", "tuned"): "aligned\ntuned",
    ("champion", "tuned"): "champion\ntuned",
}
EXPERT = ("expert", EXPERT_TEXT)
# A narrow screen loses these first; what the verdict and the gate compare stays longest.
LEAVE_OUT_FIRST = (("sft", "T=1"), ("aligned", "T=1"), ("sft_longer", "tuned"))
LABEL, VALUE, WIDE = 15, 12, 94  # screen columns: of the labels, of one value, with which the expert is shown, too
# metric → label; judges come first, under their own names.
ROWS = {
    "chrf_to_expert": "chrF to expert",
    "classifier_auc": "classifier AUC",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "length_tokens": "length, tokens",
    "kl_to_sft": "KL to SFT, T=1",
    "nll": "NLL, T=1",
}
OF_THE_MODEL = {"kl_to_sft", "nll"}  # of the distribution itself, so one value a policy
MAX_SENTENCES = 3


def print_summary(
    console: Console, result: RunResult, num_steps: int, report_path: str | None, tracking_uri: str | None = None
) -> None:
    """Print the table, the verdict, the report's path, the model, the time and the command to look further."""
    report = result.records.get("evaluate", {}).get("report")
    entry = result.records.get("register", {}).get("entry")
    console.print()
    if report:
        console.print(Text("On the test split; below each value its interval.", "dim"))
        console.print(metrics_table(report["metrics"], console.width))
        console.print()
        _wrapped(console, "verdict", short_verdict(report["verdict"]))
        _pair(console, "report", report_path or report["uri"])
    if entry:
        _pair(console, "model", f"{entry['name']} version {entry['version']}, alias {entry['alias']}")
    if promotion := result.records.get("promote", {}).get("promotion"):
        _wrapped(console, "promotion", f"{promotion['outcome']}: {promotion['reason']}")
    cached = f", {len(result.cached)} of {num_steps} steps from the cache" if result.cached else ""
    working = sum(result.working_seconds.values())
    own = f", {duration(result.seconds - working)} of it outside training, sampling and scoring" if working else ""
    _pair(console, "time", f"{duration(result.seconds)}{own}{cached}")
    if entry:
        _pair(console, "look further", look_further(entry["name"], result.run_dir, tracking_uri))


def look_further(name: str, run_dir: Path, tracking_uri: str | None) -> str:
    """Return the command that shows the model, as a shell takes it, in the current folder."""
    workdir = near(run_dir.absolute().parent.parent)
    place = [] if workdir == ".understudy" or tracking_uri else ["--workdir", workdir]
    command = shlex.join(["understudy", "model", "show", name, *place])
    # A URI may hold a password, which belongs into no output.
    return (
        f"MLFLOW_TRACKING_URI={shlex.quote(tracking_uri)} {command}"
        if tracking_uri and "@" not in tracking_uri
        else command
    )


def metrics_table(metrics: Mapping[str, Values], width: int) -> Table:
    """Return one row per metric and one column per policy and decoding; each value stands over its interval."""
    columns = [column for column in COLUMNS if column[1] in metrics.get(column[0], {})]
    room = max(1, (width - LABEL) // VALUE)
    for column in LEAVE_OUT_FIRST:
        if len(columns) > room and column in columns:
            columns.remove(column)
    columns = columns[:room]
    headings = {column: COLUMNS[column] for column in columns}
    if room > len(columns) and width >= WIDE and "expert" in metrics:
        headings[EXPERT] = "expert\ntext"
    # No box: its caption would wrap at the table's width and its lines cost columns that a phone lacks.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", width=14, no_wrap=True)
    for heading in headings.values():
        table.add_column(heading, justify="right", no_wrap=True, min_width=11)
    for metric, label in _rows(metrics):
        cells = [_cell(metrics, column, metric, list(headings)) for column in headings]
        # Exact match is 0 for every policy in most runs, and 1 for the expert by definition.
        ours = cells[: len(columns)]
        if any(value and (value.get("value") or value.get("high")) for value in ours):
            table.add_row(Text(label, overflow="ellipsis"), *(_shown(value) for value in cells))
    return table


def short_verdict(text: str) -> str:
    """Return the verdict's headline and its numbers against each rival: its first sentences."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z0-9])", text.strip())
    return " ".join(sentences[:MAX_SENTENCES])


def report_file(uri: str) -> Path | str:
    """Return the page in a stored report."""
    if "://" in uri:
        return f"{uri.rstrip('/')}/report.html"
    pages = sorted(Path(uri).glob("*.html"))
    return pages[0] if pages else Path(uri)


def _rows(metrics: Mapping[str, Values]) -> list[tuple[str, str]]:
    measured = {name for decodings in metrics.values() for values in decodings.values() for name in values}
    judges = sorted(name for name in measured if name.startswith("judge_"))
    named = [(name, name.removeprefix("judge_").replace("_", " ")) for name in judges]
    return named + [(name, label) for name, label in ROWS.items() if name in measured]


def _cell(
    metrics: Mapping[str, Values], column: tuple[str, str], metric: str, columns: list[tuple[str, str]]
) -> Values | None:
    policy, decoding = column
    found: Values | None
    if metric in OF_THE_MODEL:
        first = next(other for other in columns if other[0] == policy)
        sources = metrics[policy] if column == first else {}
        found = next((values[metric] for values in sources.values() if metric in values), None)
    else:
        found = metrics[policy].get(decoding, {}).get(metric)
    return found


def _shown(value: Values | None) -> Text:
    if value is None:
        return Text("")
    text = Text(number(value.get("value")))
    low, high = value.get("low"), value.get("high")
    if low is not None and high is not None and low != high:
        text.append(f"\n{number(low)}–{number(high)}" if low >= 0 else f"\n{number(low)}…{number(high)}", "dim")
    return text


def _wrapped(console: Console, name: str, text: str) -> None:
    grid = Table.grid(padding=(0, 0))
    grid.add_column(width=13)
    grid.add_column(overflow="fold", max_width=96)
    grid.add_row(Text(name, "bold"), Text(text))
    console.print(grid)


def _pair(console: Console, name: str, value: str) -> None:
    # Not wrapped by us: a path has to survive copying.
    console.print(Text(f"{name:<13}", "bold") + Text(str(value)), soft_wrap=True)
