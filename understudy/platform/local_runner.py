"""The process that runs the DAG through kfp.local; `local_run` starts it and watches its events.

It is a process of its own because kfp.local prints, replaces `builtins.print` and the log handlers, and waits for
its tasks: here all of that goes to kfp.log, and a signal reaches the step through the process group.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from understudy.config import section_sha256
from understudy.errors import Preempted, UnderstudyError
from understudy.platform.context import FAILURE_NAME, STOP_NAME, record_failure, told
from understudy.platform.events import FILE_NAME, EventLog, Kind

REQUEST_NAME = "request.json"


def main(run_dir: Path) -> int:
    """Run the pipeline that `request.json` names; return 0 when every step succeeded."""
    # Inherited by the shell that kfp starts around each step; the step itself installs its own handlers.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_stop_when_orphaned, args=(run_dir, os.getppid()), daemon=True).start()
    os.environ["UNDERSTUDY_RUNNER_PID"] = str(os.getpid())
    request = json.loads((run_dir / REQUEST_NAME).read_text(encoding="utf-8"))
    try:
        with _parent_run(request):
            succeeded = _run_pipeline(request, run_dir)
            if not succeeded:
                raise Preempted if (run_dir / STOP_NAME).exists() else _StepFailed  # says how the parent run ended
    except (_StepFailed, Preempted):
        succeeded = False
    except Exception as error:
        record_failure(run_dir, "pipeline", told(error, run_dir))
        raise
    return 0 if succeeded else 1


class _StepFailed(Exception):
    """Ends MLflow's parent run as failed; the step itself has said why."""


@contextmanager
def _parent_run(request: dict[str, Any]) -> Iterator[None]:
    """Open MLflow's parent run beside the pipeline's start, or none without a tracking URI."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    from understudy.platform.tracking import open_run

    with open_run(request["name"], section_sha256(request["arguments"]), request["params"], {}):
        yield


def _run_pipeline(request: dict[str, Any], run_dir: Path) -> bool:
    from kfp import local

    workdir = Path(os.environ["UNDERSTUDY_WORKDIR"])
    sys.path.insert(0, os.getcwd())  # judges and pipelines may be modules of the project at hand
    module, _, name = request["pipeline"].partition(":")
    pipeline = getattr(importlib.import_module(module), name)
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(run_dir / "kfp"),
        workspace_root=str(run_dir / "kfp-workspace"),
        raise_on_error=True,
        enable_caching=True,
        cache_root=str(workdir / "kfp-cache"),
    )
    _observe_tasks(EventLog(run_dir / FILE_NAME))
    try:
        pipeline(**request["arguments"])
    except RuntimeError as error:
        # kfp says only that an inner task failed; the step itself has written why.
        print(error, file=sys.stderr)
        return False
    return True


def _observe_tasks(events: EventLog) -> None:
    """Write an event for every task that ended, with its records, and say which came from the cache.

    kfp.local offers no hook, so its two functions are wrapped: the one that handles a task, and the one inside
    it that really executes. The tests of this module fail if a newer kfp calls them otherwise.
    """
    from kfp.local import status, task_dispatcher
    from kfp.local.orchestrator import task_executor

    execute: Callable[..., Any] = task_dispatcher.run_single_task_implementation
    handle: Callable[..., Any] = task_executor.execute_single_task
    executed: list[str] = []

    names: list[str] = []

    def observed_execute(*args: Any, **kwargs: Any) -> Any:
        executed.append(kwargs["component_name"])
        # Before the step's own start event: what it takes to import counts as its time too.
        events.write(names[-1], "start")
        return execute(*args, **kwargs)

    def observed_handle(*args: Any, **kwargs: Any) -> Any:
        executed.clear()
        started = time.monotonic()
        step = kwargs["task_spec"].task_info.name or kwargs["task_name"]
        names.append(step)
        outputs, state = handle(*args, **kwargs)
        if state == status.Status.SUCCESS:
            kind: Kind = "finish" if executed else "cached"
            seconds = round(time.monotonic() - started, 2)
            events.write(step, kind, seconds=seconds, records=_records(outputs))
        else:
            _explain_silent_end(events, step)
        return outputs, state

    task_dispatcher.run_single_task_implementation = observed_execute
    task_executor.execute_single_task = observed_handle


def _explain_silent_end(events: EventLog, step: str) -> None:
    """Record a failure for a step that was killed before it could do so itself."""
    run_dir = events.path.parent
    if step == "notify" or (run_dir / FAILURE_NAME).exists() or (run_dir / STOP_NAME).exists():
        return
    message = (
        f"Step {step} ended without a word: it was probably killed, for example because memory ran out. "
        f"Its last lines are in {run_dir / 'kfp.log'}. Run the same command again to resume."
    )
    record_failure(run_dir, step, UnderstudyError(message))
    events.write(step, "failed", error="UnderstudyError", message=message)


def _records(outputs: dict[str, Any]) -> dict[str, Any]:
    texts = {name: getattr(value, "metadata", {}).get("record") for name, value in outputs.items()}
    return {name: json.loads(text) for name, text in texts.items() if text}


def _stop_when_orphaned(run_dir: Path, parent_pid: int) -> None:
    """Stop the steps when `understudy run` itself was killed, so that no work goes on unwatched."""
    while os.getppid() == parent_pid:
        time.sleep(0.5)
    (run_dir / STOP_NAME).touch()
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
