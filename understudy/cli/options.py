"""The options that more than one command has, so that they are spelled, read and explained in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Endpoint = Annotated[
    str | None, typer.Option("--endpoint", envvar="KFP_ENDPOINT", help="KFP's API server, http(s)://HOST:PORT.")
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", help="Namespace of the runs; else platform.namespace of the params.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with a bearer token; else KFP_TOKEN, else the service account's."),
]
Workdir = Annotated[
    Path,
    typer.Option("--workdir", envvar="UNDERSTUDY_WORKDIR", help="Where all state is kept; safe to delete."),
]
WORKDIR = Path(".understudy")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
AsJsonWithProgress = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")]
Params = Annotated[Path, typer.Option("--params", help="The run's params.")]
Presets = Annotated[
    list[Path] | None,
    typer.Option("--preset", help="Params laid over it, e.g. pipelines/runs/cpu.yaml; repeatable."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="section.key=value, e.g. data.source=my.jsonl; repeatable. {a: 1} keeps the mapping's other keys."
    ),
]
PARAMS = Path("params.yaml")
Model = Annotated[str, typer.Argument(help="NAME@alias, NAME/version, or NAME for its highest version")]
Gate = Annotated[Path, typer.Option("--gate", help="The reviewed rules.", envvar="UNDERSTUDY_GATE")]
