"""Training on several nodes: a Kubeflow TrainJob, from its creation to its result (docs/decisions/0008-launcher.md)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from understudy.errors import ConfigError
from understudy.platform import where
from understudy.platform.launch_request import Exchange, Request
from understudy.records import Record

if TYPE_CHECKING:
    from understudy.config.platform import LaunchSettings


def launch_train_job(request: Request, settings: LaunchSettings) -> tuple[Record, ...]:
    """Run a request on several nodes and return its records; see `Launcher.run` for what it raises.

    Raises:
        ConfigError: there is no storage that all nodes share.
    """
    from understudy.platform.trainjob.cluster import Cluster
    from understudy.platform.trainjob.job import job_name, train_job
    from understudy.platform.trainjob.launcher import Launcher

    root = (where.storage_uri() or "").rstrip("/")
    if not root:
        raise ConfigError(
            f"Step {settings.step} runs on {settings.nodes} nodes, which need storage that all of them share: set "
            "storage.uri to s3://bucket/prefix (UNDERSTUDY_STORAGE_URI in k8s/apps)."
        )
    run_id = os.environ.get("UNDERSTUDY_RUN_ID") or os.environ.get("MLFLOW_RUN_ID") or "run"
    name = job_name(settings.step, run_id, request)
    exchange = Exchange(f"{root}/launches/{name}")
    cluster = Cluster.connect(settings.namespace)
    pod = os.environ.get("KFP_POD_NAME")
    job = train_job(name, exchange.uri, request, settings, owner=cluster.owner_of_pod(pod) if pod else None)
    with _clock_that_signals_stop() as clock:
        return Launcher(cluster, job, request, settings, exchange, clock, _say).run()


class _Clock:
    def __init__(self) -> None:
        self.stop = threading.Event()

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        return self.stop.wait(seconds)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


@contextmanager
def _clock_that_signals_stop() -> Iterator[_Clock]:
    """A clock whose waits SIGTERM and SIGINT end."""
    clock = _Clock()

    def stop(number: int, frame: Any) -> None:
        clock.stop.set()

    main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if main_thread else ()
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield clock
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(message: str) -> None:
    with suppress(OSError):  # the reader of our output may be gone
        print(message, flush=True)
