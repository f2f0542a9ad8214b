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
