"""MLflow as a Tracker: one parent run per pipeline run, one nested run per step.

Importing MLflow and opening its store cost about two seconds of processor time in every step, and a slow server
must not slow a training loop. So a step only sends lines (`tracking_channel.py`) to `tracking_worker.py`, a process
that imports MLflow, batches, retries, and outlives a step that was killed long enough to deliver what it had said.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import math
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from understudy.config import section_sha256
from understudy.data.files import sync
from understudy.errors import ConfigError, Preempted, ServiceUnreachable, UnderstudyError
from understudy.platform import where
from understudy.platform.storage import without_secrets
from understudy.platform.tracking_channel import SOCKET_VARIABLE, Channel, WorkerProcess, open_channel
from understudy.records import DatasetRef, Record

_OPEN_SECONDS = 90.0
_CLOSE_SECONDS = 90.0
_CONNECT_SECONDS = 5.0
_UNFINISHED = ".new-"
_open: list[MlflowTracker] = []


class MlflowTracker:
    """One MLflow run, written by a process beside this one; implements the Tracker protocol."""

    def __init__(self, opening: Mapping[str, Any], channel: Channel) -> None:
        self.uri = str(opening["uri"])
        self._sent = [json.dumps({"op": "open", **opening})]
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._restarted = False
        self._start(channel)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step; a step that the run already has is not logged twice."""
        values = {name: float(value) for name, value in metrics.items() if not math.isnan(float(value))}
        if values:
            self._send({"op": "metrics", "step": int(step), "time": int(time.time() * 1000), "values": values})

    def progress(self, done: int, total: int, unit: str, shown: Mapping[str, float]) -> None:
        """Ignore: progress is for people who watch, metrics are for the record."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        self._send({"op": "tags", "values": {name: str(value) for name, value in tags.items()}})

    def log_dataset(self, dataset: DatasetRef, context: str = "training") -> None:
        """Name a dataset version as an input of the run, with its DVC md5 as digest."""
        self._send({"op": "dataset", "context": context, "record": dataset.to_json()})

    def log_artifact(self, path: Path) -> None:
        """Upload a file, which must stay in place until the run is closed."""
        self._send({"op": "artifact", "path": str(path)})

    def log_result(self, record: Record) -> None:
        """Name what the run produced: a dataset version as such, anything else by tags with its digests."""
        data = record.to_json()
        if isinstance(record, DatasetRef):
            self.log_dataset(record, context="result")
        named = {name: value for name, value in data.items() if isinstance(value, str | int | float)}
        self.log_tags({f"understudy.result.{name}": str(value) for name, value in named.items()})

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; waits until the worker has opened it.

        Raises:
            ServiceUnreachable: the store does not answer.
        """
        return str(self._wait("run_id", _OPEN_SECONDS))

    def close(self, status: str = "FINISHED") -> None:
        """Deliver everything and end the run.

        Raises:
            ServiceUnreachable: something could not be delivered within a bounded time.
            UnderstudyError: the store's disk is full.
        """
        self._send({"op": "close", "status": status})
        try:
            self._wait("closed", _CLOSE_SECONDS)
        finally:
            self._channel.stop()

    def _start(self, channel: Channel) -> None:
        self._answers: dict[str, Any] = {}
        self._channel = channel
        threading.Thread(target=self._read, args=(channel, self._answers), daemon=True).start()
        with self._lock:
            for line in self._sent:
                self._write(line)

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message)
        with self._lock:
            self._sent.append(line)
            self._write(line)

    def _write(self, line: str) -> None:
        try:
            self._channel.write(line)
        except (OSError, ValueError):
            return  # said again by `_wait`

    def _read(self, channel: Channel, answers: dict[str, Any]) -> None:
        for line in channel.answers():
            answer = json.loads(line)
            if "warning" in answer:
                print(f"MLflow: {answer['warning']}", file=sys.stderr, flush=True)
            with self._changed:
                answers.update(answer)
                self._changed.notify_all()
        with self._changed:
            answers.setdefault("ended", True)
            self._changed.notify_all()

    def _wait(self, key: str, seconds: float) -> Any:
        """Return an answer; say everything again, once, to a new worker if this one died, as for lack of memory."""
        with self._changed:
            self._changed.wait_for(lambda: {key, "error", "ended"} & self._answers.keys(), timeout=seconds)
            answers = dict(self._answers)
        if key in answers:
            return answers[key]
        if "ended" in answers and "error" not in answers and not self._restarted:
            self._restarted = True
            self._channel.stop()
            self._start(WorkerProcess())  # steps are logged once however often they are said
            return self._wait(key, seconds)
        if answers.get("full_disk"):
            raise UnderstudyError(
                f"The disk of {without_secrets(self.uri)} is full ({answers['full_disk']}): MLflow did not take "
                "everything. Free some space, then run the same command again; what it already has is not repeated."
            )
        reason = answers.get("error") or ("its writer died" if "ended" in answers else f"no answer in {seconds:.0f} s")
        raise ServiceUnreachable(
            f"MLflow at {without_secrets(self.uri)} did not take everything: {reason}. "
            "Check tracking.uri and the server, then run the same command again; what it already has is not repeated."
        )


@contextmanager
def open_run(name: str, lineage: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[MlflowTracker]:
    """Open the parent run of a pipeline run; an unfinished one with the same lineage is continued.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where; MLFLOW_RUN_ID, if set, names a run to join. While it is
    open, steps started from here are written by its process: they find it by UNDERSTUDY_TRACKING_SOCKET.

    Raises:
        ServiceUnreachable: at once when the server does not answer, at the end when it did not take everything.
    """
    # A socket's path may have a hundred characters only, so it cannot lie in the working directory.
    folder = tempfile.mkdtemp(prefix="understudy-")
    path = os.path.join(folder, "tracking")
    try:
        with _opened(name=name, step=None, lineage=lineage, params=params, tags=tags, listen_at=path) as tracker:
            os.environ[SOCKET_VARIABLE] = path
            try:
                yield tracker
            finally:
                os.environ.pop(SOCKET_VARIABLE, None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_step_run(step: str, config: Mapping[str, Any]) -> Iterator[MlflowTracker]:
    """Open the nested run of a step below MLFLOW_RUN_ID; a retried step continues its own run.

    Raises:
        ServiceUnreachable: at once when the server does not answer, at the end when it did not take everything.
    """
    tags = {"understudy.code_sha256": str(config.get("code_sha256", ""))}
    with _opened(name=step, step=step, lineage=section_sha256(step, config), params=config, tags=tags) as tracker:
        _open.append(tracker)
        try:
            yield tracker
        finally:
            _open.remove(tracker)


def current() -> MlflowTracker | None:
    """Return the nested run that this process has open, if any: for datasets, tags and artifacts."""
    return _open[-1] if _open else None


def check_reachable(uri: str) -> None:
    """Raise ServiceUnreachable, within seconds, when nothing answers at a tracking URI; local stores always do.

    Raises:
        ConfigError: it is not a URL.
    """
    if uri.startswith("sqlite"):
        return
    try:
        parts = urlsplit(uri)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 5432)
    except ValueError:  # its words hold a part of the password
        raise ConfigError(
            f"The tracking URI {without_secrets(uri)!r} is not a URL: host and port cannot be told. Correct "
            "tracking.uri (MLFLOW_TRACKING_URI): http(s)://host:port, or sqlite:///file; in user and password, write "
            "/ ? # [ ] @ and % as %2F %3F %23 %5B %5D %40 and %25."
        ) from None
    if not parts.hostname:
        return
    try:
        if parts.scheme in ("http", "https"):
            _check_http(uri)
        else:
            socket.create_connection((parts.hostname, port), _CONNECT_SECONDS).close()
    except OSError as error:  # includes everything that requests raises
        raise ServiceUnreachable(
            f"MLflow at {without_secrets(uri)} does not answer ({type(error).__name__}). "
            "Start it, or correct tracking.uri (MLFLOW_TRACKING_URI), then run the same command again."
        ) from error


def make_store(uri: str) -> None:
    """Make a sqlite store's database with all its tables, whole or not at all; do nothing where one is.

    Its tables are made aside, since MLflow cannot go on where it was interrupted, or where the disk was full. The lock
    is for that alone: two processes that make tables at once break each other, and who only reads may not write it.
    """
    path = where.sqlite_file(uri)
    if path is None or path.exists():
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():  # another process was first
            return
        _remove_unfinished(path)
        # A name of its own, since MLflow keeps the connections of a process by their file's name.
        aside = path.with_name(f"{path.name}{_UNFINISHED}{uuid.uuid4().hex}")
        try:
            options = "".join(uri.partition("?")[1:])
            MlflowClient(tracking_uri=f"{where.SQLITE}{aside}{options}").search_registered_models(max_results=1)
            sync(aside)
            aside.rename(path)
            sync(path.parent)
        finally:
            _remove_unfinished(path)


def _remove_unfinished(store: Path) -> None:
    """Remove databases that were not finished, and their journals."""
    for path in store.parent.glob(f"{glob.escape(store.name)}{_UNFINISHED}*"):
        path.unlink()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values as `a.b: text`, lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def is_main_process() -> bool:
    """Say whether this is the one process of a distributed job that reports."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _opened(
    name: str,
    step: str | None,
    lineage: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    listen_at: str | None = None,
) -> Iterator[Any]:
    if not is_main_process():
        yield _Silent()
        return
    uri = os.environ["MLFLOW_TRACKING_URI"]
    check_reachable(uri)
    workdir = where.workdir()
    tracker = MlflowTracker(
        {
            "uri": uri,
            "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME", "understudy"),
            "artifacts": (workdir / "mlartifacts").as_uri() if uri.startswith("sqlite") else None,
            "join_run_id": os.environ.get("MLFLOW_RUN_ID"),
            "step": step,
            "lineage": lineage,
            "name": name,
            "params": flatten(params),
            "tags": dict(tags) | {"understudy.run_id": os.environ.get("UNDERSTUDY_RUN_ID", "")},
            "system_metrics": os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() != "false",
            "place": _place(workdir),
        },
        WorkerProcess(listen_at) if listen_at else open_channel(),
    )
    try:
        yield tracker
    except BaseException as error:
        interrupted = isinstance(error, Preempted | KeyboardInterrupt)
        try:
            tracker.close("KILLED" if interrupted else "FAILED")
        except UnderstudyError as second:
            print(second, file=sys.stderr, flush=True)  # the first error is the one to raise
        raise
    tracker.close("FINISHED")


def _place(workdir: Path) -> str:
    """Return what is the same for all runs of a working directory, which holds one run at a time."""
    return hashlib.sha256(f"{socket.gethostname()}:{workdir}".encode()).hexdigest()[:16]


def _check_http(uri: str) -> None:
    import requests

    status = requests.get(uri.rstrip("/") + "/health", timeout=(_CONNECT_SECONDS, 2 * _CONNECT_SECONDS)).status_code
    if status in (502, 503, 504):
        raise ConnectionError(f"status {status}")


class _Silent:
    """Takes everything and keeps nothing: other ranks of a distributed step."""

    run_id = ""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore."""

    def progress(self, done: int, total: int, unit: str, shown: Mapping[str, float]) -> None:
        """Ignore."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Ignore."""

    def log_dataset(self, dataset: DatasetRef, context: str = "training") -> None:
        """Ignore."""

    def log_artifact(self, path: Path) -> None:
        """Ignore."""

    def log_result(self, record: Record) -> None:
        """Ignore."""
