"""`understudy schedule`: reviewed schedules, what KFP makes of them, new data, and what runs cost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.cli import options
from understudy.config import Params, load_params
from understudy.errors import ConfigError, GateRefused

if TYPE_CHECKING:
    from understudy.platform.schedules import Plan, Wanted
    from understudy.platform.schedules_kfp import Kfp
    from understudy.platform.schedules_spec import Schedule

app = typer.Typer(
    help="Schedules: compare Git with KFP, reconcile, start runs on new data, hold budgets.",
    add_completion=False,
    no_args_is_help=True,
)
SHOWN = 8
FolderOption = Annotated[Path, typer.Option("--folder", help="Folder of the schedules' YAML.")]
ParamsOption = Annotated[Path, typer.Option("--params", help="The params file that schedules override.")]
EnvironmentOption = Annotated[
    str | None,
    typer.Option("--environment", envvar="UNDERSTUDY_ENVIRONMENT", help="Only schedules that run there."),
]
CompiledOption = Annotated[Path, typer.Option("--compiled", help="Folder of the PipelineVersion manifests in Git.")]
FOLDER = Path("pipelines/schedules")
COMPILED = Path("pipelines/compiled/kubernetes")
PARAMS = Path("params.yaml")


@app.command("check")
def check_command(
    folder: FolderOption = FOLDER,
    params: ParamsOption = PARAMS,
    compiled: CompiledOption = COMPILED,
    as_json: options.AsJson = False,
) -> None:
    """Validate every schedule offline: schema, params, estimate and deadlines against the budget."""
    from understudy.platform.schedules import compiled_versions, pin_problems
    from understudy.platform.schedules_spec import unmounted

    wanted = _wanted(folder, params, None)
    if problem := unmounted(folder):
        raise ConfigError(problem)
    # A roll-back pins a version that only the cluster still has, so this is no error here; `plan` asks KFP.
    unknown = pin_problems([item.schedule for item in wanted.values()], compiled_versions(compiled))
    if as_json:
        estimates = {name: asdict(item.estimate) for name, item in wanted.items()}
        typer.echo(json.dumps({"schedules": estimates, "pins_not_in_git": unknown}))
        return
    for name, item in wanted.items():
        budget = item.schedule.budget_gpu_hours
        typer.echo(f"{name}: {item.schedule.cron}, estimate {item.estimate.gpu_hours:g} of {budget:g} GPU hours")
    for line in unknown:
        typer.echo(f"note: {line.replace('exists neither in Git nor in KFP', 'is not in Git; plan asks KFP')}")


@app.command("plan")
def plan_command(
    folder: FolderOption = FOLDER,
    params: ParamsOption = PARAMS,
    compiled: CompiledOption = COMPILED,
    environment: EnvironmentOption = None,
    endpoint: options.Endpoint = None,
    namespace: options.Namespace = None,
    token_file: options.TokenFile = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 4 if anything differs.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the difference between Git and KFP, and each schedule's estimate; change nothing."""
    from understudy.platform.schedules import make_plan

    wanted = _wanted(folder, params, environment)
    plan = make_plan(wanted, _kfp(endpoint, namespace, token_file, params), compiled)
    _show(plan, wanted, as_json)
    if exit_code and plan.drifted:
        count = sum(action.kind != "unchanged" for action in plan.actions)
        raise GateRefused(f"KFP differs from Git in {count} schedule(s). `understudy schedule apply` makes them equal.")


@app.command("apply")
def apply_command(
    folder: FolderOption = FOLDER,
    params: ParamsOption = PARAMS,
    compiled: CompiledOption = COMPILED,
    environment: EnvironmentOption = None,
    endpoint: options.Endpoint = None,
    namespace: options.Namespace = None,
    token_file: options.TokenFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Make KFP's recurring runs what Git says; only those that this command made are ever touched."""
    from understudy.platform.schedules import apply, make_plan

    wanted, kfp = _wanted(folder, params, environment), _kfp(endpoint, namespace, token_file, params)
    plan = make_plan(wanted, kfp, compiled)
    apply(plan, wanted, kfp, lambda line: None if as_json else typer.echo(line))
    if as_json:
        typer.echo(json.dumps(plan.to_json()))
    elif not plan.drifted:
        typer.echo(f"{len(plan.actions)} schedule(s), nothing to do.")


@app.command("trigger")
def trigger_command(
    folder: FolderOption = FOLDER,
    params: ParamsOption = PARAMS,
    environment: EnvironmentOption = None,
    endpoint: options.Endpoint = None,
    namespace: options.Namespace = None,
    token_file: options.TokenFile = None,
    only: Annotated[list[str] | None, typer.Option("--schedule", help="Only this one; may be repeated.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Start even if the last run of this content failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be started.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Start a run of every schedule with `on_new_data` whose source holds content that no run has seen."""
    from pipelines.arguments import arguments
    from understudy.platform.steps.ingest import source_sha256
    from understudy.platform.trigger import trigger

    def with_digest(run_params: Params, digest: str) -> Mapping[str, Any]:
        return arguments(run_params, lambda source: digest)

    kfp, results = _kfp(endpoint, namespace, token_file, params), []
    for schedule in _schedules(folder, environment, only).values():
        result = trigger(schedule, params, kfp, source_sha256, with_digest, again, dry_run)
        results.append(result)
        if not as_json:
            started = f"started {result.run_name}" if result.started else "nothing started"
            typer.echo(f"{result.schedule}: {started}: {result.why}")
    if as_json:
        typer.echo(json.dumps({"triggered": [asdict(result) for result in results]}))


@app.command("enforce")
def enforce_command(
    folder: FolderOption = FOLDER,
    params: ParamsOption = PARAMS,
    environment: EnvironmentOption = None,
    endpoint: options.Endpoint = None,
    namespace: options.Namespace = None,
    token_file: options.TokenFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be terminated.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Terminate scheduled and triggered runs that hold GPUs for longer than their budget allows."""
    from understudy.platform.budget import deadline_seconds, overdue

    limits: dict[str, float] = {}
    kfp = _kfp(endpoint, namespace, token_file, params)
    for name, schedule in _schedules(folder, environment, None).items():
        limit = deadline_seconds(schedule.run_params(params), schedule.budget_gpu_hours)
        limits |= {run.id: limit for run in kfp.recurring_runs_of(name)}
    found = overdue(kfp.runs(), limits, time.time())
    for run, seconds, limit in found:
        if not dry_run:
            kfp.terminate(run.run_id)
        if not as_json:
            word = "would be terminated" if dry_run else "terminated"
            typer.echo(
                f"{run.display_name}: {word}: {seconds / 3600:.1f} h with GPUs, its budget allows {limit / 3600:.1f} h"
            )
    if as_json:
        typer.echo(json.dumps({"terminated": [] if dry_run else [run.run_id for run, _, _ in found]}))
    elif not found:
        typer.echo("Every run is within its budget.")


@app.command("cost")
def cost_command(
    folder: FolderOption = FOLDER,
    params: ParamsOption = PARAMS,
    environment: EnvironmentOption = None,
    endpoint: options.Endpoint = None,
    namespace: options.Namespace = None,
    token_file: options.TokenFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Show estimate, budget and what the latest runs really cost, with the rate for the next estimate."""
    from mlflow import MlflowClient

    from understudy.platform import where
    from understudy.platform.budget import actual
    from understudy.platform.tracking import check_reachable

    run_params = load_params(params)
    uri = where.named_tracking_uri(run_params)
    if not uri:
        raise ConfigError("No MLflow is named: set tracking.uri or MLFLOW_TRACKING_URI; actual costs are its metrics.")
    check_reachable(uri)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", run_params.tracking.experiment)
    kfp, client, found = _kfp(endpoint, namespace, token_file, params), MlflowClient(tracking_uri=uri), {}
    runs = list(kfp.runs())
    for name, item in _wanted(folder, params, environment).items():
        ids = {run.id for run in kfp.recurring_runs_of(name)}
        costs = [actual(client, experiment, run.run_id) for run in runs if run.recurring_run_id in ids][:SHOWN]
        found[name] = {
            "budget_gpu_hours": item.schedule.budget_gpu_hours,
            "estimate": asdict(item.estimate),
            "runs": [cost.to_json() for cost in costs],
        }
        if not as_json:
            typer.echo(
                f"{name}: estimate {item.estimate.gpu_hours:g}, budget {item.schedule.budget_gpu_hours:g} GPU hours"
            )
            for cost in costs:
                rate = cost.token_passes_per_gpu_second
                told = "" if rate is None else f", {rate:g} token passes/s and GPU"
                typer.echo(f"  run {cost.run_id}: {cost.gpu_hours:g} GPU hours{told}")
    if as_json:
        typer.echo(json.dumps(found))


def _schedules(folder: Path, environment: str | None, only: list[str] | None) -> dict[str, Schedule]:
    from understudy.platform.schedules_spec import load_schedules

    found = load_schedules(folder, environment)
    if unknown := sorted(set(only or ()) - set(found)):
        raise ConfigError(f"There is no schedule {', '.join(unknown)}; there are {', '.join(found) or 'none'}.")
    return {name: item for name, item in found.items() if not only or name in only}


def _wanted(folder: Path, params: Path, environment: str | None) -> dict[str, Wanted]:
    from pipelines.arguments import arguments
    from understudy.platform.schedules import work_out

    return work_out(_schedules(folder, environment, None), params, lambda item: arguments(item, lambda source: None))


def _kfp(endpoint: str | None, namespace: str | None, token_file: Path | None, params: Path) -> Kfp:
    from understudy.platform.kfp_token import bearer_token
    from understudy.platform.schedules_kfp import Kfp

    return Kfp(endpoint, namespace or load_params(params).platform.namespace, bearer_token(token_file))


def _show(plan: Plan, wanted: Mapping[str, Wanted], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(plan.to_json()))
        return
    for action in plan.actions:
        typer.echo(f"{action.kind:<9} {action.name}" + (f": {action.why}" if action.why else ""))
        if item := wanted.get(action.schedule):
            budget = item.schedule.budget_gpu_hours
            typer.echo(
                f"          estimate {item.estimate.gpu_hours:g} of {budget:g} GPU hours ({item.estimate.basis})"
            )
    for name in plan.foreign:
        typer.echo(f"not ours  {name}: its name looks like ours, its description does not; left alone")
    if not plan.actions:
        typer.echo("No schedule, and nothing of ours in KFP.")
