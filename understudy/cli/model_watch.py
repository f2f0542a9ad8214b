"""`understudy model watch`: does what comes in still look like what the model was trained on?"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from understudy.cli import options
from understudy.errors import ConfigError, DataRefused, DriftFound

if TYPE_CHECKING:
    from understudy.evaluation.drift import DriftMonitor, Window
    from understudy.platform.watch import Scorer, Watched
    from understudy.platform.watch_stream import Stream

SEED = 0
WIDE = 72  # screen columns with which the table says in which window, too


def watch(
    model: options.Model,
    stream: Annotated[str, typer.Option("--stream", help="A file of {prompt, response} lines, or - for stdin.")],
    against: Annotated[
        str, typer.Option("--against", help="Whose responses: demonstrations (experts') or samples (the model's).")
    ] = "demonstrations",
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more rows until interrupted.")] = False,
    window: Annotated[int, typer.Option("--window", min=30, help="Rows that are tested together.")] = 200,
    false_alarm: Annotated[
        float, typer.Option("--false-alarm", min=1e-6, max=0.5, help="Chance of any alarm without drift, ever.")
    ] = 0.05,
    quarantine: Annotated[Path | None, typer.Option("--quarantine", help="Where bad rows are appended.")] = None,
    metrics_port: Annotated[int | None, typer.Option("--metrics-port", min=0, help="Serve Prometheus there.")] = None,
    metrics_host: Annotated[str, typer.Option("--metrics-host", help="Address to listen on.")] = "127.0.0.1",
    metrics_file: Annotated[Path | None, typer.Option("--metrics-file", help="Write Prometheus text there.")] = None,
    workdir: options.Workdir = options.WORKDIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --follow one line a window.")] = False,
) -> None:
    """Compare a stream of prompts and responses with what a model was trained on; ends with 6 on drift."""
    from understudy.cli.model import open_registry, storage_of_params
    from understudy.evaluation.drift import DriftMonitor
    from understudy.platform.watch import load_watched
    from understudy.platform.watch_metrics import WatchMetrics
    from understudy.platform.watch_stream import Stream

    if against not in ("demonstrations", "samples"):
        raise ConfigError(f"--against is {against!r}; choose demonstrations or samples.")
    registry = open_registry(workdir)
    version = registry.find(model)
    bad = quarantine or workdir / "watch" / quote(version.name, safe="") / "quarantine.jsonl"
    with Stream(stream, follow, bad) as rows:
        metrics = WatchMetrics(version.name, version.version, metrics_port, metrics_host, metrics_file)
        try:
            watched = load_watched(registry, version, storage_of_params(), against, SEED)
            monitor = DriftMonitor(watched.reference, false_alarm, window, SEED)
            if not as_json:
                _say_start(watched, monitor, metrics.port)
            windows = _test(watched, monitor, rows, metrics, as_json)
        finally:
            metrics.close()
    _end(watched, monitor, rows, windows, as_json, follow)


def _test(watched: Watched, monitor: DriftMonitor, rows: Stream, metrics: Any, as_json: bool) -> list[Window]:
    """Test the stream window by window; Ctrl-C ends a followed stream as its end would."""
    from understudy.evaluation.drift import MIN_ROWS
    from understudy.platform.watch import windows_of

    tested: list[Window] = []
    rows.on_line = lambda: metrics.count(rows.num_rows, rows.num_refused)
    try:
        for window in windows_of(rows.rows(), monitor.window, MIN_ROWS):
            found = monitor.test(watched.scorer.scores(window))
            tested.append(found)
            metrics.update(found, rows.num_rows, rows.num_refused)
            if not rows.follow:
                continue
            typer.echo(json.dumps(found.to_json(), allow_nan=False) if as_json else _line(found))
    except KeyboardInterrupt:
        if not rows.follow:
            raise
    metrics.update(tested[-1] if tested else None, rows.num_rows, rows.num_refused)
    return tested


def _end(
    watched: Watched, monitor: DriftMonitor, rows: Stream, windows: list[Window], as_json: bool, follow: bool
) -> None:
    drifted = sorted({metric.metric for window in windows for metric in window.metrics if metric.drift})
    command = _command(watched.name) if drifted else None
    if as_json and not follow:
        content = {
            "model": f"{watched.name}/{watched.version}",
            "against": watched.against,
            "dataset_md5": watched.dataset_md5,
            "reference_rows": watched.num_reference,
            "false_alarm": monitor.false_alarm,
            "first_window": {"nominal": monitor.nominal, "simulated": monitor.simulated},
            "rows": rows.num_rows,
            "remembered": watched.scorer.num_remembered,
            "unencodable": watched.scorer.num_unencodable,
            "quarantined": rows.reasons,
            "windows": [window.to_json() for window in windows],
            "drifted": drifted,
            "command": command,
        }
        typer.echo(json.dumps(content, indent=1, allow_nan=False))
    elif not as_json:
        _show(windows)
        _say_rows(rows, windows, watched.scorer)
    if not windows and not follow:
        refused = f", {rows.num_refused} more are in quarantine ({rows.quarantine})" if rows.num_refused else ""
        raise DataRefused(
            f"The stream holds {rows.num_rows} good rows{refused}; a comparison needs 30. Collect more and watch again."
        )
    if drifted:
        raise DriftFound(
            f"Drift in {', '.join(drifted)}: what comes in is no longer what {watched.name}/{watched.version} was "
            f"trained for. Retraining is proposed, on demonstrations of what comes in now: {command}"
        )


def _command(name: str) -> str:
    return f"understudy run --set data.source=NEW_DEMONSTRATIONS.jsonl --set {shlex.quote(f'registry.name={name}')}"


def _say_start(watched: Watched, monitor: DriftMonitor, port: int | None) -> None:
    _say(
        f"{watched.name}/{watched.version} against {watched.num_reference} held-out {watched.against}, windows of "
        f"{monitor.window} rows. Without drift any alarm, ever, has a chance of {monitor.false_alarm:.3g} at most: the "
        f"first window {monitor.nominal:.3g} (simulated on no-drift windows: {monitor.simulated:.3g}), later ones less."
    )
    for note in watched.scorer.notes:
        _say(note)
    if port is not None:
        typer.echo(f"Metrics on port {port}.")


def _line(window: Window) -> str:
    found = "  ".join(
        f"{metric.metric} {_number(metric.distance)}{' DRIFT' if metric.drift else ''}" for metric in window.metrics
    )
    return f"window {window.number}, {window.rows} rows: {found}"


def _show(windows: list[Window]) -> None:
    """Print each metric's worst window."""
    if not windows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    for heading in ("metric", "drift", "distance", "threshold", "median", "trained", *(["window"] if wide else [])):
        table.add_column(heading, no_wrap=True)
    for place in range(len(windows[0].metrics)):
        pairs = [(window, window.metrics[place]) for window in windows]
        window, worst = max(pairs, key=lambda pair: (pair[1].drift, (pair[1].distance or 0) - (pair[1].threshold or 0)))
        numbers = map(_number, (worst.distance, worst.threshold, worst.median, worst.reference_median))
        last = [f"{window.number} of {len(windows)}"] if wide else []
        drift = Text("yes", "red") if worst.drift else Text("no")
        table.add_row(Text(worst.metric), drift, *map(Text, (*numbers, *last)))
    console.print(table)


def _say(text: str) -> None:
    """Break long lines between words on a terminal; leave them whole for whoever reads them from a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def _say_rows(rows: Stream, windows: list[Window], scorer: Scorer) -> None:
    left = rows.num_rows - sum(window.rows for window in windows)
    text = f"{rows.num_rows} rows in {len(windows)} windows"
    if windows and left:
        text += f"; the last {left} made no window"
    if rows.num_refused:
        text += f"; {rows.num_refused} bad rows are in {rows.quarantine}"
    if scorer.num_remembered:
        text += f"; {scorer.num_remembered} are rows that it was trained on, of which only lengths are compared"
    if scorer.num_unencodable:
        text += f"; {scorer.num_unencodable} cannot be given to it and are not compared"
    _say(f"{text}.")
    if windows and not any(window.drift for window in windows):
        _say("No drift shown. A drift that is smaller than the thresholds would not be seen.")


def _number(value: float | None) -> str:
    from understudy.cli.numbers import number

    return number(value)
