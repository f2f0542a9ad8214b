"""`understudy pipeline`: the compiled form of the DAG, generated and checked; ad-hoc runs on a cluster."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated

import typer

from understudy.config import Params, load_params
from understudy.errors import ConfigError

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
    overrides: Annotated[list[str] | None, typer.Option("--set", help="platform.key=value, repeatable.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the compiled files.")] = COMPILED,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file is not up to date.")] = False,
    release: Annotated[bool, typer.Option("--release", help="Refuse images without a released digest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Compile the DAG to KFP's intermediate representation and to Kubernetes objects, the same bytes every time."""
    loaded = load_params(params, overrides or [])
    if release:
        _refuse_unreleased(loaded)
    files = compiled_files(loaded)
    stale = [name for name, text in files.items() if _stored(out / name) != text]
    if check and stale:
        again = " ".join(["understudy pipeline compile", *(f"--set '{override}'" for override in overrides or [])])
        raise ConfigError(
            f"{', '.join(str(out / name) for name in stale)} is not what the pipeline compiles to. "
            f"Run `{again}` and commit the result. First differing lines:\n"
            + "\n".join(_difference(_stored(out / stale[0]), files[stale[0]]))
        )
    if not check:
        for name in stale:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            aside = (out / name).with_name(f".{Path(name).name}.aside")
            aside.write_text(files[name], encoding="utf-8")
            aside.replace(out / name)
    if as_json:
        typer.echo(json.dumps({"files": [str(out / name) for name in files], "written": [] if check else stale}))
    else:
        for name in files:
            typer.echo(f"{out / name}: {'written' if name in stale else 'up to date'}")


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
