"""`understudy ui`: MLflow's web interface on the runs of this working directory."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from understudy.cli import options
from understudy.errors import ConfigError

app = typer.Typer(add_completion=False)

_HOST = "127.0.0.1"


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    workdir: options.Workdir = options.WORKDIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print where it will be as JSON, then serve.")] = False,
) -> None:
    """Serve MLflow's web interface here, for this machine only, until Ctrl-C."""
    from understudy.platform import where
    from understudy.platform.storage import without_secrets

    url = f"http://{_HOST}:{port}"
    store = where.tracking_uri(workdir, where.params_here())
    if store.startswith(("http://", "https://")):
        raise ConfigError(
            f"MLflow is a server, {without_secrets(store)}, which has its own web interface. Open it there."
        )
    if (path := where.sqlite_file(store)) and not path.exists():
        raise ConfigError(f"There are no runs at {store}. Run `understudy run` first, or name its --workdir.")
    check_port_free(port)
    typer.echo(f'{{"url": "{url}"}}' if as_json else f"MLflow on {url} (Ctrl-C ends it)")
    sys.stdout.flush()
    # Not as an argument, which every process of the machine can read: it may hold a password.
    environment = dict(os.environ, MLFLOW_BACKEND_STORE_URI=store, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    artifacts = (workdir.absolute() / "mlartifacts").as_uri()
    arguments = ["--default-artifact-root", artifacts, "--host", _HOST, "--port", str(port), "--workers", "1"]
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "server", *arguments], environment)


def check_port_free(port: int) -> None:
    """Raise ConfigError when something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ConfigError(
                f"Port {port} on {_HOST} cannot be used ({error.strerror}). Choose another with --port."
            ) from error
