"""`understudy run` without its looks: start the DAG here, watch it, forward signals, say how it ended.

    understudy run (this process: lock, live view)  →  local_runner (kfp.local)  →  one process per step

Everything that the runner and the steps print goes to runs/<id>/kfp.log; what happens goes to events.jsonl.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from understudy import errors
from understudy.config import Params
from understudy.errors import Preempted, UnderstudyError
from understudy.platform import where
from understudy.platform import workdir as workdirs
from understudy.platform.context import FAILURE_NAME, RESUME, STOP_NAME
from understudy.platform.events import FILE_NAME, EventReader
from understudy.platform.local_runner import REQUEST_NAME
from understudy.platform.registrations import forget_unconfirmed

Event = dict[str, Any]
LOG_NAME = "kfp.log"
OUTCOME_NAME = "outcome.json"
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class RunResult:
    """How a run ended well: `records` maps step to artifact name to record (as JSON).

    `step_seconds` maps each step that ran to its wall time from its start by the runner, and `working_seconds` to
    the part of it in training, sampling and scoring. What lies between the sums of both, and between the steps, is
    what the pipeline itself costs.
    """

    run_id: str
    run_dir: Path
    seconds: float
    step_seconds: dict[str, float]
    working_seconds: dict[str, float]
    records: dict[str, dict[str, Any]]
    cached: tuple[str, ...]


def run(
    pipeline: str,
    arguments: dict[str, Any],
    params: Params,
    workdir: Path,
    on_events: Callable[[list[Event]], None] = lambda events: None,
    on_start: Callable[[str, Path], None] = lambda run_id, run_dir: None,
) -> RunResult:
    """Run a KFP pipeline ("module:function") to its end in this working directory.

    `on_events` is called about ten times a second with what happened since, possibly nothing.

    Raises:
        WorkdirBusy: another run holds the working directory.
        Preempted: SIGINT or SIGTERM came; state is saved. A second signal kills the steps.
        UnderstudyError: what the failing step raised, with its class and message.
    """
    workdir = workdirs.prepare(workdir)
    with workdirs.lock(workdir):
        run_id = workdirs.new_run_id()
        run_dir = workdirs.run_folder(workdir, run_id)
        request = {"pipeline": pipeline, "arguments": arguments, "name": f"run {run_id}", "params": _shown(params)}
        (run_dir / REQUEST_NAME).write_text(json.dumps(request, indent=1), encoding="utf-8")
        forget_unconfirmed(workdir, where.tracking_uri(workdir, params))
        on_start(run_id, run_dir)
        started = time.monotonic()
        # kfp writes each step's program into a folder of its own for temporary files, and leaves it there.
        with tempfile.TemporaryDirectory(prefix="understudy-", ignore_cleanup_errors=True) as scratch:
            env = {**environment(params, workdir, run_id, run_dir), "TMPDIR": scratch}
            seen = _watch(run_dir, env, on_events)
        return _result(run_id, run_dir, time.monotonic() - started, seen)


def _result(run_id: str, run_dir: Path, seconds: float, seen: list[Event]) -> RunResult:
    ended = [event for event in seen if event["kind"] == "finish"]
    return RunResult(
        run_id=run_id,
        run_dir=run_dir,
        seconds=seconds,
        # Both the step and the runner tell of the end; only the runner's time has the step's imports in it.
        step_seconds={event["step"]: event["seconds"] for event in ended if "records" in event},
        working_seconds={event["step"]: event["working_seconds"] for event in ended if "working_seconds" in event},
        records={event["step"]: event["records"] for event in seen if event.get("records")},
        cached=tuple(event["step"] for event in seen if event["kind"] == "cached"),
    )


def environment(params: Params, workdir: Path, run_id: str, run_dir: Path) -> dict[str, str]:
    """Return the environment of the steps: operational settings, which never enter a cache key.

    What the params leave open, the caller's environment may set.
    """
    settings = {
        "UNDERSTUDY_WORKDIR": str(workdir),
        "UNDERSTUDY_RUN_ID": run_id,
        "UNDERSTUDY_RUN_DIR": str(run_dir),
        "UNDERSTUDY_STORAGE_URI": where.storage_uri(params),
        "UNDERSTUDY_DVC_REMOTE": params.storage.dvc_remote,
        "UNDERSTUDY_THREADS": str(params.runtime.threads),
        "UNDERSTUDY_DEVICE": params.runtime.device,
        "AWS_ENDPOINT_URL": params.storage.endpoint_url,
        "MLFLOW_TRACKING_URI": where.tracking_uri(workdir, params),
        "MLFLOW_EXPERIMENT_NAME": params.tracking.experiment,
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": str(params.tracking.system_metrics).lower(),
        # Independent of where the command is run from and of what the user's shell buffers.
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    given = {name: value for name, value in settings.items() if value is not None}
    defaults = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(params.runtime.threads)}
    return {**defaults, **os.environ, **given}


def _shown(params: Params) -> dict[str, Any]:
    """Return the params as MLflow's parent run shows them: what changes results, not where services are."""
    operational = {"promotion", "tracking", "storage", "notify", "runtime", "platform"}
    return params.model_dump(mode="json", exclude=operational)


def _watch(run_dir: Path, env: dict[str, str], on_events: Callable[[list[Event]], None]) -> list[Event]:
    reader, seen = EventReader(run_dir / FILE_NAME), []
    command = [sys.executable, "-m", "understudy.platform.local_runner", str(run_dir)]
    with (run_dir / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )
    with _forwarded_signals(process, run_dir):
        try:
            while True:
                ended = process.poll() is not None
                events = reader.read()
                seen += events
                on_events(events)
                if ended:
                    break
                time.sleep(POLL_SECONDS)
        except BaseException:
            # The view failed, not the run: leave nothing behind that works on unwatched.
            _kill(process)
            raise
    _raise_for(run_dir, process.returncode)
    return seen


@contextmanager
def _forwarded_signals(process: subprocess.Popen[bytes], run_dir: Path) -> Iterator[None]:
    """First signal: ask the steps to save and end. Second: kill them."""
    received = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received > 1:
            _kill(process)
            return
        (run_dir / STOP_NAME).touch()
        try:
            os.killpg(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            return

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _raise_for(run_dir: Path, returncode: int) -> None:
    """Raise what the failing step raised; a run that was stopped is preempted, however its steps ended."""
    if returncode == 0:
        return
    failure = read_failure(run_dir)
    log = run_dir / LOG_NAME
    if (run_dir / STOP_NAME).exists() and (failure is None or failure["error"] != "Preempted"):
        raise Preempted(f"The run was stopped. {RESUME}")
    if failure is None:
        raise UnderstudyError(
            f"The pipeline's process ended with status {returncode} before any step could say why. "
            f"Its last line: {_last_line(log)!r}. Everything it printed is in {log}."
        )
    if not failure["expected"]:
        raise UnderstudyError(
            f"Step {failure['step']} failed unexpectedly: {failure['message']}. The traceback is in {log}."
        )
    error_class = getattr(errors, failure["error"], UnderstudyError)
    raise error_class(failure["message"])


def read_failure(run_dir: Path) -> dict[str, Any] | None:
    """Return what the first failing step of a run wrote, or None."""
    path = run_dir / FAILURE_NAME
    if not path.exists():
        return None
    failure: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return failure


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""
