"""`understudy run`: the whole pipeline on this machine, with a live view."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from understudy.cli import options
from understudy.config import load_params
from understudy.errors import ConfigError, DataRefused

if TYPE_CHECKING:
    from understudy.platform.local_run import RunResult

PIPELINE = "pipelines.retrain:retrain"
HELP = "Run the whole pipeline here: ingest, SFT, align, evaluate, register."
app = typer.Typer(help=HELP, add_completion=False, rich_markup_mode=None)


@app.command(help=HELP)
def run(
    params: options.Params = options.PARAMS,
    workdir: options.Workdir = options.WORKDIR,
    presets: options.Presets = None,
    overrides: options.Overrides = None,
    as_json: options.AsJsonWithProgress = False,
) -> None:
    """Run the pipeline, show it, and print what came out."""
    loaded = load_params(params, overrides or [], presets or [])
    # After the params are known to be right: a typo must not wait for imports.
    from pipelines.arguments import arguments
    from understudy.cli.live import LiveView
    from understudy.cli.summary import print_summary
    from understudy.platform import local_run, where
    from understudy.platform.steps.preflight import config_problems, raise_for, service_problems
    from understudy.platform.workdir import prepare

    folder = prepare(workdir)
    where.use_endpoint(loaded)  # this process, too, reads s3:// sources and checks the storage
    raise_for([], service_problems(where.tracking_uri(folder, loaded), where.storage_uri(loaded), folder))
    view = LiveView(loaded, to_stderr=as_json)
    try:
        given = arguments(loaded)
    except (ConfigError, DataRefused):
        # The source alone cannot be read; step preflight, which lists what else is wrong, would never come.
        problems = config_problems({name: getattr(loaded, name) for name in type(loaded).model_fields}, folder)
        if len(problems) > 1:
            raise_for(problems, [])
        raise
    with view:
        result = local_run.run(PIPELINE, given, loaded, folder, on_events=view.update, on_start=view.start)
    if as_json:
        typer.echo(json.dumps(outcome(result), indent=2))
    else:
        print_summary(view.console, result, len(view.steps), link_report(result), loaded.tracking.uri)


def link_report(result: RunResult) -> str | None:
    """Give the report a path that a person can type, in the run's folder; return it, or where the report is."""
    from understudy.cli.live import near
    from understudy.cli.summary import report_file

    report = result.records.get("evaluate", {}).get("report")
    page = report_file(report["uri"]) if report else None
    if not isinstance(page, Path):
        return page
    link = result.run_dir / page.name
    try:
        link.symlink_to(os.path.relpath(page, link.parent))
    except OSError:
        # A file system without links: the long path is as right.
        link = page
    return near(link)


def outcome(result: RunResult) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "run_id": result.run_id,
        "run_dir": str(result.run_dir),
        "seconds": round(result.seconds, 2),
        "step_seconds": result.step_seconds,
        "working_seconds": result.working_seconds,
        "cached": list(result.cached),
        "records": result.records,
    }
