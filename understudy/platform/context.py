"""Where a step runs and how it says what happens: folders, tracker, store, signals, failures.

A step reads operational settings from the environment only, so that the same code runs under kfp.local and on a
cluster, and so that they never take part in cache keys:

    UNDERSTUDY_WORKDIR, UNDERSTUDY_RUN_ID, UNDERSTUDY_RUN_DIR, UNDERSTUDY_STORAGE_URI, UNDERSTUDY_THREADS,
    UNDERSTUDY_DEVICE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID (the parent run)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from understudy.data.files import full_disk_words, is_full_disk
from understudy.errors import ConfigError, Preempted, UnderstudyError
from understudy.platform import where
from understudy.platform.budget import report
from understudy.platform.events import FILE_NAME, CompositeTracker, EventLog, EventTracker, Kind
from understudy.platform.quick_exit import leave_quickly_when_done
from understudy.platform.workdir import new_run_id, run_folder, step_lock
from understudy.records import Record
from understudy.tracker import Tracker

if TYPE_CHECKING:
    from understudy.platform.storage import Store
    from understudy.platform.tracking import MlflowTracker

STOP_NAME = "stop"
UNTRACKED = ("preflight", "champion", "ingest_shard")  # without numbers of their own; MLflow would cost them seconds
FAILURE_NAME = "failure.json"
RESUME = "Run the same command again to resume."
_when_done: list[Callable[[], None]] = []  # of the step at work in this process


class _SilentLog(EventLog):
    """The event log of a process that does not report."""

    def write(self, step: str, kind: Kind, **values: Any) -> None:
        """Ignore."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of the run that this process belongs to, by the environment."""

    workdir: Path
    path: Path
    run_id: str

    @classmethod
    def from_environment(cls) -> RunFolder:
        """Find (or make) the folder; a pod without a writable working directory gets a temporary one."""
        workdir = where.workdir()
        run_id = os.environ.get("UNDERSTUDY_RUN_ID") or new_run_id()
        given = os.environ.get("UNDERSTUDY_RUN_DIR")
        try:
            path = Path(given) if given else run_folder(workdir, run_id)
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            path = Path(tempfile.mkdtemp(prefix="understudy-run-"))
        return cls(workdir, path, run_id)

    @property
    def events(self) -> EventLog:
        """The run's event log; of a step's several processes the first alone writes to it."""
        return (EventLog if is_main_process() else _SilentLog)(self.path / FILE_NAME)


class StepContext:
    """What a step needs besides its config and its inputs; made by `step_context`."""

    def __init__(self, step: str, config: Mapping[str, Any], tracker: Tracker, events: EventLog, workdir: Path) -> None:
        self.step = step
        self.config = config
        self.tracker = tracker
        self.events = events
        self.workdir = workdir
        self.run_dir = events.path.parent
        self.run_id = os.environ.get("UNDERSTUDY_RUN_ID", self.run_dir.name)
        self.seed = int(config.get("seed", 0))
        threads = int(os.environ.get("UNDERSTUDY_THREADS", "0")) or os.cpu_count() or 1
        self.threads = max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # of this process of a machine
        self.device = os.environ.get("UNDERSTUDY_DEVICE", "auto")
        self.result: Record | None = None
        self.working_seconds = 0.0
        self._stop = threading.Event()
        self._saves_state = False

    @cached_property
    def store(self) -> Store:
        """The content-addressed store; opened when first used."""
        from understudy.platform.storage import open_store

        return open_store(where.storage_uri(), self.workdir)

    def checkpoint_dir(self, lineage: str) -> Path:
        """Return the folder for checkpoints of this step with this lineage, created.

        `lineage` names everything that the result depends on (a digest), never the attempt, so a retried or
        preempted step finds its own state. Who calls this must poll `should_stop`: from here on a signal no
        longer interrupts the step at once, so that it can save its state.
        """
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", lineage):
            raise ValueError(f"lineage {lineage!r} is not a plain name; use a digest")
        self._saves_state = True
        folder = self.workdir / "checkpoints" / f"{self.step}-{lineage}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def should_stop(self) -> bool:
        """Say whether the run is to end: save the state, then raise Preempted."""
        return self._stop.is_set() or (self.run_dir / STOP_NAME).exists()

    def note(self, message: str) -> None:
        """Tell the person who watches something worth a line, for example a resumed checkpoint."""
        if not is_main_process():
            return
        self.events.write(self.step, "note", message=message)
        with suppress(OSError):  # the reader of our output may be gone
            print(message, flush=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time training, sampling or scoring; the rest of a step's time is what the pipeline itself costs."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.working_seconds += time.monotonic() - started

    def when_done(self, tidy: Callable[[], None]) -> None:
        """Have the step's first process do this once the step has succeeded, its tracking included.

        In a launched training that is when its result is handed over, too.
        """
        _when_done.append(tidy)

    def finish(self, record: Record) -> None:
        """State the step's result, shown in its finish event and logged to MLflow as tags."""
        self.result = record

    def interrupt(self) -> None:
        """React to a signal: note it, and raise unless the step saves its own state."""
        self._stop.set()
        if not self._saves_state:
            raise Preempted(f"Step {self.step} was interrupted before it had state worth saving. {RESUME}")


@contextmanager
def step_context(step: str, config: Mapping[str, Any]) -> Iterator[StepContext]:
    """Run a step's body: events at start and end, MLflow's nested run, signals, a failure record.

    `config["step"]` overrides the name, as sft_longer does, which is the sft step again.

    Raises:
        Preempted: a signal came, or the run was stopped before this step began.
        UnderstudyError: a full disk, said in one paragraph. Everything else passes through unchanged.
    """
    _when_done.clear()
    name = str(config.get("step", step))
    folder = RunFolder.from_environment()
    workdir, run_dir, events = folder.workdir, folder.path, folder.events
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            if (run_dir / STOP_NAME).exists():
                raise Preempted(f"The run was interrupted before step {name} began. {RESUME}")
            if "UNDERSTUDY_RUNNER_PID" in os.environ and is_main_process():
                stack.enter_context(step_lock(workdir))
                leave_quickly_when_done()
            events.write(name, "start", pid=os.getpid())
            mlflow_trackers = _mlflow_trackers(stack, name, config)
            stack.callback(report, CompositeTracker(mlflow_trackers), started)
            tracker = CompositeTracker([EventTracker(events, name), *mlflow_trackers])
            context = StepContext(name, config, tracker, events, workdir)
            stack.enter_context(_signals(context))
            yield context
            if context.result and (mlflow_run := current_run()):
                mlflow_run.log_result(context.result)
        # Tracking is closed, which may fail: only now is the step done, and what a retry would go on from may go.
        record = context.result.to_json() if context.result else None
        seconds, working_seconds = round(time.monotonic() - started, 2), round(context.working_seconds, 2)
        events.write(name, "finish", seconds=seconds, working_seconds=working_seconds, record=record)
        if where.WORKER not in os.environ:
            tidy_up()
    except BaseException as error:
        shown = told(error, workdir)
        record_failure(run_dir, name, shown)
        events.write(name, "failed", error=type(shown).__name__, message=str(shown))
        if shown is error:
            raise
        raise shown from error


def tidy_up() -> None:
    """Do what `StepContext.when_done` asked for, in the process that reports."""
    while _when_done:
        tidy = _when_done.pop(0)
        if is_main_process():
            tidy()


def is_main_process() -> bool:
    """Say whether this is the one process of a step that reports: accelerate numbers them in RANK."""
    return os.environ.get("RANK", "0") == "0"


def current_run() -> MlflowTracker | None:
    """Return MLflow's run of the step at work in this process, if tracking is on: for inputs and files."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    from understudy.platform.tracking import current

    return current()


def record_failure(run_dir: Path, step: str, error: BaseException) -> None:
    """Write failure.json for `understudy run` to repeat; the first failure of a run is the one that counts."""
    path = run_dir / FAILURE_NAME
    if path.exists():
        return
    expected = isinstance(error, UnderstudyError)
    failure = {
        "step": step,
        "error": type(error).__name__,
        "message": str(error) if expected else f"{type(error).__name__}: {error}",
        "exit_code": getattr(error, "exit_code", 1),
        "expected": expected,
        "traceback": "".join(traceback.format_exception(error)),
    }
    aside = path.with_suffix(f".{os.getpid()}.aside")
    try:
        aside.write_text(json.dumps(failure, indent=1), encoding="utf-8")
        aside.replace(path)
    except OSError:
        # A full disk: the failed event and the exit status still tell.
        return


def _mlflow_trackers(stack: ExitStack, step: str, config: Mapping[str, Any]) -> list[Tracker]:
    """Open MLflow's nested run of this step, if a tracking URI is configured and it computes anything."""
    if not os.environ.get("MLFLOW_TRACKING_URI") or step in UNTRACKED:
        return []
    from understudy.platform.tracking import open_step_run

    return [stack.enter_context(open_step_run(step, config))]


@contextmanager
def _signals(context: StepContext) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into a stop that loops can poll, and watch for a runner that was killed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        context.interrupt()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    done = threading.Event()
    runner_pid = int(os.environ.get("UNDERSTUDY_RUNNER_PID", "0"))
    if runner_pid:
        threading.Thread(target=_watch_runner, args=(runner_pid, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch_runner(runner_pid: int, done: threading.Event) -> None:
    """Stop this step like a SIGTERM would once the process that started it is gone (kill -9)."""
    while not done.wait(1.0):
        try:
            os.kill(runner_pid, 0)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        except PermissionError:
            return


def told(error: BaseException, workdir: Path) -> BaseException:
    """Return the error as a person should read it."""
    if isinstance(error, KeyboardInterrupt):
        return Preempted(f"Interrupted. {RESUME}")
    if is_full_disk(error):
        free = shutil.disk_usage(workdir).free / 1e6
        return UnderstudyError(
            f"The disk is full: writing {getattr(error, 'filename', None) or 'a file'} failed "
            f"({full_disk_words(error)}) with {free:.0f} MB free below {str(workdir)!r}. Free some space, or name a "
            f"working directory on another disk with --workdir DIR. {RESUME}"
        )
    if isinstance(error, SystemExit):
        return ConfigError(f"A library ended the step with exit status {error.code}; its words are in kfp.log.")
    return error
