"""`understudy pipeline`: the compiled form of the DAG, generated and checked; ad-hoc runs on a cluster."""

from __future__ import annotations

import difflib
import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.cli import options
from understudy.config import Params, load_params
from understudy.data.files import told_when_unwritable, write_atomically
from understudy.errors import ConfigError

if TYPE_CHECKING:
    from understudy.platform.submit import Runs

COMPILED = Path("pipelines/compiled")
app = typer.Typer(
    help="Compile the pipeline for the cluster; run it there.", add_completion=False, no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Compile the pipeline for the cluster; run it there."""


@app.command("compile")
def compile_command(
    params: Annotated[Path, typer.Option("--params", help="Its `platform:` section counts.")] = Path("params.yaml"),
    presets: options.Presets = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="platform.key=value, repeatable.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the compiled files.")] = COMPILED,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file is not up to date.")] = False,
    release: Annotated[bool, typer.Option("--release", help="Refuse images without a released digest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Compile the DAG to KFP's intermediate representation and to Kubernetes objects, the same bytes every time."""
    loaded = load_params(params, overrides or [], presets or [])
    if release:
        _refuse_unreleased(loaded)
    files = compiled_files(loaded)
    stale = [name for name, text in files.items() if _stored(out / name) != text]
    if check and stale:
        given = [*(f"--preset {preset}" for preset in presets or []), *(f"--set '{item}'" for item in overrides or [])]
        again = " ".join(["understudy pipeline compile", *given])
        raise ConfigError(
            f"{', '.join(str(out / name) for name in stale)} is not what the pipeline compiles to. "
            f"Run `{again}` and commit the result. First differing lines:\n"
            + "\n".join(_difference(_stored(out / stale[0]), files[stale[0]]))
        )
    if not check:
        for name in stale:
            with told_when_unwritable(out / name, "--out"):
                write_atomically(out / name, files[name].encode())
    if as_json:
        typer.echo(json.dumps({"files": [str(out / name) for name in files], "written": [] if check else stale}))
    else:
        for name in files:
            typer.echo(f"{out / name}: {'written' if name in stale else 'up to date'}")


@app.command("submit")
def submit_command(
    params: options.Params = options.PARAMS,
    presets: options.Presets = None,
    overrides: options.Overrides = None,
    endpoint: options.Endpoint = None,
    namespace: options.Namespace = None,
    token_file: options.TokenFile = None,
    version: Annotated[str | None, typer.Option("--version", help="A deployed version, not this checkout.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end, with its steps' logs.")] = False,
    poll_seconds: Annotated[float, typer.Option("--poll-seconds", min=0.05, help="How often to look.")] = 5.0,
    cancel_on_interrupt: Annotated[bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C ends the run.")] = False,
    as_json: options.AsJsonWithProgress = False,
) -> None:
    """Start a run on the cluster, in the ad-hoc queue, with the arguments that `understudy run` would use."""
    loaded = load_params(params, overrides or [], presets or [])
    _refuse_unreachable_inputs(loaded, version)
    from pipelines.arguments import arguments
    from pipelines.compile import PIPELINE_NAME, compile_pipeline
    from understudy.platform import submit

    runs = _runs(endpoint, namespace or loaded.platform.namespace, token_file)
    # The steps find the digest of the source: this machine may have no access to it.
    given = arguments(loaded, digest_of=lambda source: None)
    spec: Any
    if version is None:
        compiled = compile_pipeline(loaded.platform, "adhoc").version["spec"]
        spec = {"pipeline_spec": compiled["pipelineSpec"], "platform_spec": compiled["platformSpec"]}
    else:
        known = runs.versions(PIPELINE_NAME)
        if version not in known:
            raise ConfigError(f"KFP has no version {version!r} of {PIPELINE_NAME}; it has {sorted(known) or 'none'}.")
        spec = known[version]
    name = f"{PIPELINE_NAME}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    outcome = runs.submit(name, spec, given, loaded.platform.service_account)
    typer.echo(f"run {outcome.run_id}: {name}", err=as_json)
    try:
        if wait:
            on_interrupt = "cancel" if cancel_on_interrupt else "leave"
            submit.wait(runs, outcome, lambda line: typer.echo(line, err=as_json), poll_seconds, on_interrupt)
    finally:
        if as_json:
            shown = {"run_id": outcome.run_id, "name": name, "state": outcome.state, "steps": outcome.steps}
            typer.echo(json.dumps(shown))


@app.command("cancel")
def cancel_command(
    run_id: Annotated[str, typer.Argument(help="As `submit` printed it.")],
    params: options.Params = options.PARAMS,
    overrides: options.Overrides = None,
    endpoint: options.Endpoint = None,
    namespace: options.Namespace = None,
    token_file: options.TokenFile = None,
    as_json: options.AsJson = False,
) -> None:
    """End a run: its steps get SIGTERM, save their state and delete their TrainJobs."""
    where = namespace or load_params(params, overrides or []).platform.namespace
    _runs(endpoint, where, token_file).cancel(run_id)
    shown = {"run_id": run_id, "namespace": where, "asked_to_end": True}
    typer.echo(json.dumps(shown) if as_json else f"run {run_id}: asked to end")


def _runs(endpoint: str | None, namespace: str, token_file: Path | None) -> Runs:
    from understudy.platform.kfp_token import bearer_token
    from understudy.platform.submit import Runs

    return Runs(endpoint, namespace, bearer_token(token_file))


def _refuse_unreachable_inputs(params: Params, version: str | None) -> None:
    """Refuse, before anything is sent, what no pod could read or pull; all of it at once."""
    from pipelines.compile import unreleased

    problems = [f"{item} (or --version NAME)" for item in unreleased(params.platform) if "placeholder" in item]
    problems = [] if version else problems
    if not params.data.source.startswith("s3://"):
        problems.append(f"data.source is {params.data.source!r}, a file of this machine; pods read s3://… only")
    if problems:
        raise ConfigError("Not fit for the cluster:\n" + "\n".join(f"  - {problem}" for problem in problems))


def compiled_files(params: Params | None = None) -> dict[str, str]:
    """Return every compiled file's text by its path below the output folder."""
    from pipelines.compile import compiled_files as compiled

    return compiled(params or load_params(Path("params.yaml")))


def _refuse_unreleased(params: Params) -> None:
    from pipelines.compile import unreleased

    problems = list(unreleased(params.platform))
    if problems:
        raise ConfigError(
            "Not fit for a release:\n" + "\n".join(f"  - {problem}" for problem in problems) + "\n"
            'docs/operations.md, "Release", says how the digests get there.'
        )


def _stored(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _difference(stored: str, wanted: str) -> list[str]:
    lines = difflib.unified_diff(stored.splitlines(), wanted.splitlines(), "stored", "compiled", lineterm="", n=0)
    return list(lines)[:12]
