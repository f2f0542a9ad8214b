"""`understudy data`: demonstrations to a dataset version, without training anything."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.cli import options

if TYPE_CHECKING:
    from understudy.config import DataConfig

app = typer.Typer(
    name="data",
    add_completion=False,
    help="Ingest, show, verify, pull and commit dataset versions; expire what ingests leave.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# For a folder without params.yaml; with one, its data section holds. A test keeps the two equal.
DEFAULTS: dict[str, Any] = {
    "fields": None,
    "max_prompt_chars": 2000,
    "max_response_chars": 4000,
    "max_bad_fraction": 0.05,
    "near_duplicate_threshold": 0.9,
    "splits": {"validation": 0.1, "test": 0.1},
    "unicode_form": "keep",
}


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does: what it wrote aside goes, and the exit code says to run it again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
@_ended_like_ctrl_c()
def ingest(
    source: Annotated[str, typer.Argument(help="File, directory, Hugging Face dataset folder, or s3://bucket/prefix.")],
    workdir: options.Workdir = options.WORKDIR,
    params: Annotated[Path | None, typer.Option(help="Params file; else params.yaml here, if any.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="E.g. data.unicode_form=NFC")] = None,
    shards: Annotated[int, typer.Option(help="Processes that read it, at most one a file or MiB.", min=1)] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Validate, deduplicate, split and version demonstrations."""
    from understudy.platform.steps.ingest import ingest_source

    result = ingest_source(_data_config(source, params, overrides or []), workdir, shards=shards)
    shown = {
        **result.summary.to_json(),
        "md5": result.ref.md5,
        "uri": result.ref.uri,
        "path": str(result.folder),
        "parent": result.ref.parent,
        "uploaded": result.num_uploaded,
        "quarantine": str(result.quarantine),
        "summary": str(workdir.absolute() / "ingest" / "summary.html"),
    }
    _print(shown, as_json, f"Dataset {result.ref.md5.removesuffix('.dir')}")


@app.command()
def show(workdir: options.Workdir = options.WORKDIR, as_json: options.AsJson = False) -> None:
    """Show the current dataset version and what its ingest found."""
    from understudy.data.summary import read_summary
    from understudy.platform.datasets import POINTER_NAME, read_record

    ref = read_record(workdir)
    shown = {**read_summary(ref.md5, workdir), **ref.to_json(), "pointer": str(workdir / POINTER_NAME)}
    _print(shown, as_json, f"Dataset {ref.md5.removesuffix('.dir')}")


@app.command()
@_ended_like_ctrl_c()
def verify(workdir: options.Workdir = options.WORKDIR, as_json: options.AsJson = False) -> None:
    """Check every file of the current version against its digest, and count its rows."""
    from understudy.platform import datasets

    ref = datasets.read_record(workdir)
    counts = datasets.verify(ref, workdir.absolute())
    _print({"verified": True, "md5": ref.md5, "rows": ref.rows, "splits": counts}, as_json, "Verified")


@app.command()
@_ended_like_ctrl_c()
def pull(workdir: options.Workdir = options.WORKDIR, as_json: options.AsJson = False) -> None:
    """Bring the current version from its remote into the working directory."""
    from understudy.platform import datasets

    ref = datasets.read_record(workdir)
    folder = datasets.materialise(ref, workdir.absolute())
    _print({"md5": ref.md5, "path": str(folder), "rows": ref.rows}, as_json, "Pulled")


@app.command()
def commit(
    workdir: options.Workdir = options.WORKDIR,
    folder: Annotated[Path, typer.Option(help="Where in the Git repository the pointer goes.")] = Path("."),
    as_json: options.AsJson = False,
) -> None:
    """Commit the version's DVC pointer, and nothing else, to the enclosing Git repository."""
    from understudy.platform import datasets

    ref = datasets.read_record(workdir)
    pointer, revision = datasets.commit(ref, workdir, folder)
    _print({"md5": ref.md5, "pointer": str(pointer), "commit": revision}, as_json, "Committed")


@app.command()
def expire(
    days: Annotated[int, typer.Option(help="Only what was written more days ago than this.", min=1)] = 14,
    storage: Annotated[
        str | None, typer.Option(help="Folder or s3://…; else storage.uri of params.yaml, UNDERSTUDY_STORAGE_URI.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    workdir: options.Workdir = options.WORKDIR,
    as_json: options.AsJson = False,
) -> None:
    """Delete old pieces of ingests in shards and checkpoints of steps that never ended; both can be made again."""
    from understudy.platform import where
    from understudy.platform.storage import EXPIRING, open_store

    params = where.params_here()
    where.use_endpoint(params)
    store = open_store(where.storage_uri(params, storage), workdir)
    gone = [piece for kind in EXPIRING for piece in store.expire(kind, days, dry_run)]
    pieces = {piece.uri: f"{piece.num_bytes:,} bytes, {piece.age_days:.1f} days" for piece in gone}
    shown = {"pieces": len(gone), "bytes": sum(piece.num_bytes for piece in gone), **pieces}
    if as_json:
        shown = {"deleted": not dry_run, "pieces": [dataclasses.asdict(piece) for piece in gone]}
    _print(shown, as_json, "Would be deleted" if dry_run else "Deleted")


def _data_config(source: str, params: Path | None, overrides: list[str]) -> DataConfig:
    from understudy.config import DataConfig, apply_override, load_params, validate
    from understudy.errors import ConfigError

    if params is None and Path("params.yaml").is_file():
        params = Path("params.yaml")
    if params is not None:
        data = load_params(params, overrides).data.model_dump() | {"source": source}
        return validate(DataConfig, data, where=str(params))
    sections: dict[str, Any] = {"data": json.loads(json.dumps(DEFAULTS)) | {"source": source}}
    for override in overrides:
        apply_override(sections, override)
    if others := sorted(set(sections) - {"data"}):
        raise ConfigError(f"--set names {', '.join(others)}; without a params file only data.… can be set.")
    data = sections["data"]
    return validate(DataConfig, data | {"source": source} if isinstance(data, dict) else data, where="data")


def _print(shown: dict[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        typer.echo(json.dumps(shown, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=title, show_header=False, title_justify="left", box=None, padding=(0, 2))
    for name, value in _lines(shown):
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    console.print(table)
    for warning in shown.get("warnings", ()):
        console.print(Text(f"Warning: {warning}", style="yellow"))


def _lines(shown: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for name, value in shown.items():
        if name in ("warnings", "length_quantiles", "source_files") or value in (None, [], {}):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_number(item)}" for key, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value[:5])) + (" …" if len(value) > 5 else "")
        lines.append((name.replace("_", " "), _number(value)))
    return lines


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
