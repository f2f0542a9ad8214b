"""The live view of a run: the DAG's steps and a progress bar inside the running one.

On a terminal the view redraws in place; otherwise it prints one line per event worth one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from understudy.cli.numbers import duration, number
from understudy.config import Params
from understudy.platform.local_run import Event

STEPS = ("preflight", "ingest", "sft", "align", "sft_longer", "evaluate", "register")
_MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "done": ("✓", "green"),
    "cached": ("✓", "green"),
    "failed": ("✗", "bold red"),
}
_LINE_EVERY_SECONDS = 10.0
_BEFORE_DETAIL = 21  # columns for mark, name and time
_BESIDE_THE_BAR = 52  # columns for mark, name and time before it, and for count and time left after it
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
        self.steps = {step: StepState() for step in (*STEPS, *(["promote"] if params.promotion.enabled else []))}
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
        self._print(f"Run {run_id} · log {near(run_dir / 'kfp.log')}")

    def update(self, events: list[Event]) -> None:
        """Take in what happened and redraw."""
        for event in events:
            self._take(event)
        if self._live is not None:
            # The cursor rests on an empty line: a ^C that the terminal echoes at the end of a full one would go to the
            # next, and the view would leave its first line behind when it redraws.
            self._live.update(Group(self.render(), Text("")), refresh=True)

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

    def _take(self, event: Event) -> None:
        name, kind = event["step"], event["kind"]
        if kind == "note":
            self._notes.append(f"{name}: {event['message']}")
            self._print(f"{name}: {event['message']}")
        step = self.steps.get(name)
        if step is None:
            return
        if kind == "start" and step.state != "running":
            self.steps[name] = StepState("running", started=event["t"])
            self._print(f"{name}: started")
        elif kind == "progress":
            self._take_progress(name, step, event)
        elif kind in ("finish", "cached") and "records" in event:
            # The runner's word, which comes after the step's own: only it counts starting and storing.
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
        if step.state != "running":
            return Text("")
        if not step.total:
            return Text("starting", "dim")
        left = step.seconds_left(now)
        numbers = Text(f"{step.done}/{step.total} {step.unit}", no_wrap=True, overflow="ellipsis")
        if left is not None and step.done < step.total:
            numbers.append(f" · {duration(left)} left", "dim")
        width = min(40, max(8, self.console.width - _BESIDE_THE_BAR))
        line = Table.grid(padding=(0, 1))
        line.add_column(width=width)
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(ProgressBar(total=step.total, completed=step.done, width=width), numbers)
        return Group(line, Text(shown_text(step.shown, self.console.width - _BEFORE_DETAIL), "cyan"))

    def _print(self, line: str) -> None:
        if self._live is None:
            self.console.print(line, markup=False, soft_wrap=True)


def shown_text(shown: dict[str, float | None], width: int | None = None) -> str:
    """Return the few numbers beside the bar, each with its name; lines of at most `width` break between them."""
    pairs = [f"{_SHORT.get(name, name.replace('_', ' '))} {number(value)}" for name, value in shown.items()]
    lines = [""]
    for pair in pairs:
        longer = f"{lines[-1]}  {pair}" if lines[-1] else pair
        if width is not None and lines[-1] and len(longer) > width:
            lines.append(pair)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def near(path: Path | str) -> str:
    """Return a path relative to the current folder where that is shorter to read."""
    if isinstance(path, str):
        return path
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
