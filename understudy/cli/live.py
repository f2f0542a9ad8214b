"""The live view of a run: the DAG's steps, a progress bar inside the running one, and the table at the end.

On a terminal the view redraws in place; otherwise it prints one line per event worth one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from understudy.config import Params
from understudy.platform.local_run import Event, RunResult

STEPS = ("preflight", "ingest", "sft", "align", "sft_longer", "evaluate", "register")
_MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "done": ("✓", "green"),
    "cached": ("✓", "green"),
    "failed": ("✗", "bold red"),
}
_LINE_EVERY_SECONDS = 10.0
_SHORT = {"discriminator_accuracy": "D acc", "tokens_per_second": "tokens/s", "validation_nll": "val NLL"}


@dataclass
class StepState:
    """What the view knows about one step."""

    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    unit: str = ""
    shown: dict[str, float | None] = field(default_factory=dict)
    first_progress: tuple[float, int] | None = None
    last_line: float = 0.0

    def seconds_left(self, now: float) -> float | None:
        """Extrapolate from the pace of this phase; None before there is any."""
        if self.first_progress is None or self.total <= 0:
            return None
        since, done = self.first_progress
        if self.done <= done:
            return None
        return (now - since) / (self.done - done) * (self.total - self.done)


class LiveView:
    """Shows a run while it goes on; a context manager, so that the terminal is restored however it ends."""

    def __init__(self, params: Params, to_stderr: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=to_stderr, highlight=False)
        self.steps = {step: StepState() for step in STEPS}
        self.params = params
        self._notes: list[str] = []
        self._started = time.time()
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
            self._live.stop()

    def start(self, run_id: str, run_dir: Path) -> None:
        """Say which run begins and where its log is."""
        self._started = time.time()
        self._print(f"Run {run_id} · log {_near(run_dir / 'kfp.log')}")

    def update(self, events: list[Event]) -> None:
        """Take in what happened and redraw."""
        for event in events:
            self._take(event)
        if self._live is not None:
            self._live.update(self.render(), refresh=True)

    def render(self) -> RenderableType:
        """Return the steps as a table that fits narrow terminals."""
        now = time.time()
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(width=10)
        table.add_column(width=7, justify="right")
        table.add_column(ratio=1, overflow="fold")
        for name, step in self.steps.items():
            mark, style = _MARKS[step.state]
            seconds = now - step.started if step.state == "running" else step.seconds
            elapsed = "" if step.state in ("waiting", "cached") else duration(seconds)
            table.add_row(Text(mark, style), Text(name, style), Text(elapsed, "dim"), self._detail(step, now))
        parts: list[RenderableType] = [table]
        parts += [Text(note, "yellow", overflow="fold") for note in self._notes[-2:]]
        return Group(*parts)

    def summary(self, result: RunResult) -> None:
        """Print the table of metrics, the report's path, the model, and the command to look further."""
        report = result.records.get("evaluate", {}).get("report")
        entry = result.records.get("register", {}).get("entry")
        if report:
            self.console.print()
            self.console.print(metrics_table(report["metrics"], self.console.width))
            for line in comparison_lines(report):
                self.console.print(line)
            self._pair("verdict", report["verdict"])
            self._pair("report", _near(_report_file(report["uri"])))
        if entry:
            self._pair("model", f"{entry['name']} version {entry['version']}, alias {entry['alias']}")
        cached = f", {len(result.cached)} of {len(STEPS)} steps cached" if result.cached else ""
        self._pair("time", f"{duration(result.seconds)}{cached}")
        if entry:
            self._pair("look further", f"understudy model show {entry['name']}")

    def _take(self, event: Event) -> None:
        name, kind = event["step"], event["kind"]
        if kind == "note":
            self._notes.append(f"{name}: {event['message']}")
            self._print(f"{name}: {event['message']}")
        step = self.steps.get(name)
        if step is None:
            return
        if kind == "start":
            self.steps[name] = StepState("running", started=event["t"])
            self._print(f"{name}: started")
        elif kind == "progress":
            self._take_progress(name, step, event)
        elif kind in ("finish", "cached") and step.state not in ("done", "cached"):
            step.state = "done" if kind == "finish" else "cached"
            step.seconds = float(event.get("seconds", 0.0))
            self._print(f"{name}: cached" if kind == "cached" else f"{name}: done in {duration(step.seconds)}")
        elif kind == "failed":
            step.state, step.seconds = "failed", event["t"] - step.started if step.started else 0.0
            self._print(f"{name}: failed")

    def _take_progress(self, name: str, step: StepState, event: Event) -> None:
        if event["unit"] != step.unit or event["total"] != step.total or event["done"] < step.done:
            step.first_progress = (event["t"], event["done"])
        step.done, step.total, step.unit = event["done"], event["total"], event["unit"]
        step.shown = event["shown"]
        if self._live is None and event["t"] - step.last_line >= _LINE_EVERY_SECONDS:
            step.last_line = event["t"]
            self._print(f"{name}: {step.done}/{step.total} {step.unit}  {shown_text(step.shown)}".rstrip())

    def _detail(self, step: StepState, now: float) -> RenderableType:
        if step.state == "cached":
            return Text("cached", "dim")
        if step.state != "running" or not step.total:
            return Text("")
        left = step.seconds_left(now)
        numbers = Text(f"{step.done}/{step.total} {step.unit}")
        if left is not None:
            numbers.append(f" · {duration(left)} left", "dim")
        bar = ProgressBar(total=step.total, completed=step.done, width=min(40, max(10, self.console.width - 24)))
        return Group(bar, numbers, *([Text(shown_text(step.shown), "cyan")] if step.shown else []))

    def _print(self, line: str) -> None:
        if self._live is None:
            self.console.print(line, markup=False, soft_wrap=True)

    def _pair(self, name: str, value: str) -> None:
        self.console.print(Text(f"{name:<13}", "bold") + Text(str(value)), soft_wrap=True)


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 0.4s, 12s, 3m05s, 2h10m."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def shown_text(shown: dict[str, float | None]) -> str:
    """Return the few numbers beside the bar, each with its name."""
    return "  ".join(f"{_SHORT.get(name, name.replace('_', ' '))} {number(value)}" for name, value in shown.items())


def number(value: float | None) -> str:
    """Return a number with about three digits that matter; null (not finite) as a dash."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def metrics_table(metrics: dict[str, Any], width: int) -> Table:
    """Return one row per decoding and metric, one column per policy, each value with its interval."""
    policies: list[str] = [name for name in ("sft", "aligned", "sft_longer") if name in metrics] or list(metrics)
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for policy in policies:
        for decoding, values in metrics[policy].items():
            for metric, value in values.items():
                rows.setdefault((decoding, metric), {})[policy] = interval(value, short=width < 90)
    if width < 90:
        policies = policies[:2]
    table = Table(title="SFT and aligned on the test split", title_justify="left", box=None, pad_edge=False)
    table.add_column("decoding")
    table.add_column("metric", overflow="fold")
    for policy in policies:
        table.add_column(policy, justify="right", no_wrap=True)
    previous = ""
    decodings = list(dict.fromkeys(decoding for decoding, _ in rows))
    for (decoding, metric), cells in sorted(rows.items(), key=lambda row: decodings.index(row[0][0])):
        if not any(policy in cells for policy in policies):
            continue
        shown = decoding if decoding != previous else ""
        previous = decoding
        table.add_row(shown, metric.replace("_", " "), *(cells.get(policy, "") for policy in policies))
    return table


def interval(value: dict[str, float], short: bool = False) -> str:
    """Return "0.61 [0.55, 0.66]", or the bare number where there is no interval."""
    low, high = value.get("low"), value.get("high")
    if low is None or high is None or low == high:
        return number(value.get("value"))
    between = f"{number(low)},{number(high)}" if short else f"{number(low)}, {number(high)}"
    return f"{number(value.get('value'))} [{between}]"


def comparison_lines(report: dict[str, Any]) -> list[Text]:
    """Return the report's paired comparisons, one line each, if they say themselves in words."""
    return [Text(f"  {item['text']}", "dim") for item in report.get("comparisons", []) if item.get("text")]


def _report_file(uri: str) -> Path | str:
    if "://" in uri:
        return f"{uri.rstrip('/')}/report.html"
    folder = Path(uri)
    pages = sorted(folder.glob("*.html")) if folder.is_dir() else [folder]
    return pages[0] if pages else folder


def _near(path: Path | str) -> str:
    """Return a path relative to the current folder where that is shorter to read."""
    if isinstance(path, str):
        return path
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
