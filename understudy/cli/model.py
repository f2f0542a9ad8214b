"""`understudy model`: list, show, use, promote, roll back and verify registered models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.cli import gate as model_gate
from understudy.cli import model_compare, model_promotion, model_watch, options
from understudy.errors import ConfigError

if TYPE_CHECKING:
    from understudy.platform.registry import Registry, Version

app = typer.Typer(
    help="List, show, use, promote, roll back and verify registered models.", no_args_is_help=True, add_completion=False
)


@app.command("list")
def list_models(workdir: options.Workdir = options.WORKDIR, as_json: options.AsJson = False) -> None:
    """List every version in the registry."""
    versions = open_registry(workdir).versions()
    if as_json:
        typer.echo(json.dumps([asdict(version) for version in versions], indent=1))
        return
    if not versions:
        typer.echo("No model is registered yet. `understudy run` trains and registers one.")
        return
    _show_list(versions)


def _show_list(versions: list[Version]) -> None:
    """Print a row per version, or a block where rows are too wide for the screen; nothing is left out or cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [
        {
            "model": version.name,
            "version": version.version,
            "aliases": ", ".join(version.aliases),
            "stage": version.tags.get("stage", ""),
            "commit": version.tags.get("git_commit", "")[:8] + ("+" if version.tags.get("git_dirty") == "true" else ""),
            "dataset": version.tags.get("dataset_md5", "")[:8],
            "pipeline run": version.tags.get("pipeline_run", ""),
        }
        for version in versions
    ]
    console = Console(highlight=False)
    if sum(2 + max(map(len, (column, *(row[column] for row in rows)))) for column in rows[0]) - 2 > console.width:
        for row in rows:
            typer.echo(f"{row.pop('model')}/{row.pop('version')}")
            for column, text in row.items():
                if text:
                    typer.echo(f"  {column:<12}  {text}")
        return
    table = Table(*rows[0], box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        # As Text, so that brackets in a name are not read as markup.
        table.add_row(*map(Text, row.values()))
    console.print(table)


@app.command()
def show(
    model: options.Model,
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
) -> None:
    """Show one version: where it came from and how it did."""
    version = open_registry(workdir).find(model)
    if as_json:
        typer.echo(json.dumps(asdict(version), indent=1))
        return
    names = "".join(f"  @{alias}" for alias in version.aliases)
    typer.echo(f"{version.name}/{version.version}{names}")
    for key, value in version.tags.items():
        typer.echo(f"  {key:<22} {value}")
    for decoding, values in version.metrics.items():
        typer.echo(f"  {decoding:<22} " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))


@app.command()
def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Option("--prompt", help="What to answer.")],
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Default: the version's own.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy. Default: the version's own.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
) -> None:
    """Answer a prompt with a registered model, shown as it is written."""
    if not prompt.strip():
        raise ConfigError("--prompt is empty. Give the text that the model is to answer.")
    registry = open_registry(workdir)
    version = registry.find(model)
    answer = _generate(registry, version, prompt, max_new_tokens, temperature, seed, stream=not as_json)
    if as_json:
        typer.echo(json.dumps({"model": f"{version.name}/{version.version}", "prompt": prompt, **answer}, indent=1))


app.command()(model_compare.compare)
app.command()(model_compare.ladder)
app.command()(model_gate.gate)
app.command()(model_promotion.promote)
app.command()(model_promotion.rollback)
app.command()(model_promotion.verify)
app.command()(model_promotion.provenance)
app.command()(model_watch.watch)


def open_registry(workdir: Path) -> Registry:
    """Return the registry that params.yaml or MLFLOW_TRACKING_URI names, else that of the working directory."""
    from understudy.platform import where
    from understudy.platform.registry import Registry

    params = where.params_here()
    where.use_endpoint(params)
    uri = where.tracking_uri(workdir, params)
    if (path := where.sqlite_file(uri)) and not path.exists():
        raise ConfigError(
            f"There is no registry at {uri}. Run `understudy run` first, name its folder with --workdir, "
            "or set tracking.uri in params.yaml or MLFLOW_TRACKING_URI."
        )
    return Registry(uri, workdir)


def storage_of_params() -> str | None:
    """Return the store that params.yaml or UNDERSTUDY_STORAGE_URI names, None for that of the working directory."""
    from understudy.platform import where

    return where.storage_uri(where.params_here())


def _generate(
    registry: Registry,
    version: Version,
    prompt: str,
    max_new_tokens: int | None,
    temperature: float | None,
    seed: int,
    stream: bool,
) -> dict[str, Any]:
    from understudy.cli.model_stream import Answerer

    answerer = Answerer(registry, version, max_new_tokens, temperature)
    answer = answerer.answer(prompt, seed, (lambda text: typer.echo(text, nl=False)) if stream else None)
    if stream:
        typer.echo()
    return answer
