"""Where things are: MLflow and the store. One order everywhere: option, params, environment, the working directory.

Steps get no params: `local_run` and the pods' ConfigMap put what the params say into their environment.
"""

from __future__ import annotations

import os
from pathlib import Path

from understudy.config import Params, load_params

PARAMS = Path("params.yaml")
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
STORAGE_VARIABLE = "UNDERSTUDY_STORAGE_URI"
WORKDIR_VARIABLE = "UNDERSTUDY_WORKDIR"
WORKDIR = ".understudy"
SQLITE = "sqlite:///"
WORKER = "UNDERSTUDY_WORKER"  # set in a process of a launched training


def params_here() -> Params | None:
    """Return the params of the folder that a command is run in, None where there are none.

    Raises:
        ConfigError: naming every problem at once.
    """
    return load_params(PARAMS) if PARAMS.is_file() else None


def workdir() -> Path:
    """Return the working directory of this process, absolute."""
    return Path(os.environ.get(WORKDIR_VARIABLE) or WORKDIR).absolute()


def named_tracking_uri(params: Params | None = None) -> str | None:
    """Return the MLflow that somebody named, None for a store in the working directory."""
    uri = (params.tracking.uri if params else None) or os.environ.get(TRACKING_VARIABLE) or None
    if uri and uri.startswith(SQLITE):
        # A relative file starts in the current folder, which another process, a step, need not share.
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return uri


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, whatever options its URI has; None for any other store."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def tracking_uri(folder: Path, params: Params | None = None) -> str:
    """Return the MLflow that somebody named, else a sqlite store in the working directory `folder`."""
    return named_tracking_uri(params) or f"{SQLITE}{folder.absolute() / 'mlflow.db'}"


def storage_uri(params: Params | None = None, option: str | None = None) -> str | None:
    """Return the folder or bucket of the content, None for a folder in the working directory."""
    named = (option, params.storage.uri if params else None, os.environ.get(STORAGE_VARIABLE))
    return next((uri.strip() for uri in named if uri and uri.strip()), None)


def shared_root(folder: Path, storage: str | None) -> str:
    """Return where what several machines change lies: beside the content in a bucket, else the working directory."""
    return storage.rstrip("/") if storage and storage.startswith("s3://") else str(folder.absolute())


def use_endpoint(params: Params | None) -> None:
    """Let this process find the storage that the params name, if it is not AWS."""
    if params and params.storage.endpoint_url:
        os.environ["AWS_ENDPOINT_URL"] = params.storage.endpoint_url
