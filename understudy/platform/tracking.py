"""MLflow as a Tracker: one parent run per pipeline run, one nested run per step.

Importing MLflow and opening its store cost about two seconds of processor time in every step, and a slow server
must not slow a training loop. So a step only writes lines to a pipe; `tracking_worker.py`, a process of its own,
imports MLflow, batches, retries, and outlives a step that was killed long enough to deliver what it had said.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from understudy.config import section_sha256
from understudy.errors import Preempted, ServiceUnreachable, UnderstudyError
from understudy.platform.storage import without_secrets
from understudy.records import DatasetRef

_OPEN_SECONDS = 90.0
_CLOSE_SECONDS = 90.0
_CONNECT_SECONDS = 5.0
_open: list[MlflowTracker] = []


class MlflowTracker:
    """One MLflow run, written by a process beside this one; implements the Tracker protocol."""

    def __init__(self, opening: Mapping[str, Any]) -> None:
        self.uri = str(opening["uri"])
        self._sent = [json.dumps({"op": "open", **opening})]
        self._lock = threading.Lock()
        self._start()

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

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, which must stay in place until the run is closed."""
        self._send({"op": "artifact", "path": str(path), "folder": folder})

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
        """
        self._send({"op": "close", "status": status})
        if self._process.poll() not in (None, 0) and "error" not in self._answers:
            # The worker died, for example for lack of memory: say everything again; steps are logged once anyway.
            self._start()
        try:
            self._wait("closed", _CLOSE_SECONDS)
        finally:
            self._stop()

    def _start(self) -> None:
        self._answers: dict[str, Any] = {}
        self._changed = threading.Condition()
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "understudy.platform.tracking_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the step; the worker ends when the step has said its last line
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        with self._lock:
            for line in self._sent:
                self._write(line)

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message)
        with self._lock:
            self._sent.append(line)
            self._write(line)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # said again by `close`

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answer = json.loads(line)
            if "warning" in answer:
                print(f"MLflow: {answer['warning']}", file=sys.stderr, flush=True)
            with self._changed:
                self._answers.update(answer)
                self._changed.notify_all()
        process.wait()
        with self._changed:
            self._answers.setdefault("ended", process.returncode)
            self._changed.notify_all()

    def _wait(self, key: str, seconds: float) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: {key, "error", "ended"} & self._answers.keys(), timeout=seconds)
            if key in self._answers:
                return self._answers[key]
            reason = self._answers.get("error") or f"its writer ended with {self._answers.get('ended', 'no answer')}"
        raise ServiceUnreachable(
            f"MLflow at {without_secrets(self.uri)} did not take everything: {reason}. "
            "Check tracking.uri and the server, then run the same command again; what it already has is not repeated."
        )

    def _stop(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def open_run(name: str, lineage: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[MlflowTracker]:
    """Open the parent run of a pipeline run; an unfinished one with the same lineage is continued.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where; MLFLOW_RUN_ID, if set, names a run to join.

    Raises:
        ServiceUnreachable: at once when the server does not answer, at the end when it did not take everything.
    """
    with _opened(name=name, step=None, lineage=lineage, params=params, tags=tags) as tracker:
        yield tracker


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
    """Raise ServiceUnreachable, within seconds, when nothing answers at a tracking URI; local stores always do."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite") or not parts.hostname:
        return
    default_port = {"https": 443, "http": 80}.get(parts.scheme, 5432)
    try:
        if parts.scheme in ("http", "https"):
            _check_http(uri)
        else:
            socket.create_connection((parts.hostname, parts.port or default_port), _CONNECT_SECONDS).close()
    except OSError as error:  # includes everything that requests raises
        raise ServiceUnreachable(
            f"MLflow at {without_secrets(uri)} does not answer ({type(error).__name__}). "
            "Start it, or correct tracking.uri (MLFLOW_TRACKING_URI), then run the same command again."
        ) from error


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Hold a sqlite store for its first use: two processes that create its tables at once break each other."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


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
    name: str, step: str | None, lineage: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Iterator[Any]:
    if not is_main_process():
        yield _Silent()
        return
    uri = os.environ["MLFLOW_TRACKING_URI"]
    check_reachable(uri)
    workdir = Path(os.environ.get("UNDERSTUDY_WORKDIR", ".understudy")).absolute()
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
        }
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

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Ignore."""
