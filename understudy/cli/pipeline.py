"""`understudy pipeline`: the compiled form of the DAG, generated and checked."""

from __future__ import annotations

import difflib
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from understudy.errors import ConfigError

COMPILED = Path("pipelines/compiled")
app = typer.Typer(help="Compile the pipeline for the cluster.", add_completion=False, no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Compile the pipeline for the cluster."""


@app.command("compile")
def compile_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the compiled files.")] = COMPILED,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file is not up to date.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Compile the DAG to KFP's intermediate representation, the same bytes every time."""
    files = compiled_files()
    stale = [name for name, text in files.items() if _stored(out / name) != text]
    if check and stale:
        raise ConfigError(
            f"{', '.join(str(out / name) for name in stale)} is not what the pipeline compiles to. "
            f"Run `understudy pipeline compile` and commit the result. First differing lines:\n"
            + "\n".join(_difference(_stored(out / stale[0]), files[stale[0]]))
        )
    if not check:
        out.mkdir(parents=True, exist_ok=True)
        for name in stale:
            aside = out / f".{name}.aside"
            aside.write_text(files[name], encoding="utf-8")
            aside.replace(out / name)
    if as_json:
        typer.echo(json.dumps({"files": [str(out / name) for name in files], "written": [] if check else stale}))
    else:
        for name in files:
            typer.echo(f"{out / name}: {'written' if name in stale else 'up to date'}")


def compiled_files() -> dict[str, str]:
    """Return every compiled file's text by name; more formats join here."""
    return {"retrain.yaml": intermediate_representation()}


def intermediate_representation() -> str:
    """Compile the DAG to plain KFP IR."""
    from kfp.compiler import Compiler

    from pipelines.retrain import retrain

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "retrain.yaml"
        Compiler().compile(retrain, str(path))
        return path.read_text(encoding="utf-8")


def _stored(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _difference(stored: str, wanted: str) -> list[str]:
    lines = difflib.unified_diff(stored.splitlines(), wanted.splitlines(), "stored", "compiled", lineterm="", n=0)
    return list(lines)[:12]
