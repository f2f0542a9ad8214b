"""Where a training step runs: in this process, under `accelerate launch` on this machine, or as a TrainJob.

A compiled sft or align task carries LaunchSettings as JSON in UNDERSTUDY_LAUNCH; without it (`understudy run`), or
with one process, the step runs here. Nothing of this changes what is computed, so nothing of it is in a cache key.

    nodes 1, several GPUs    accelerate launch --num_processes GPUS -m understudy.platform.worker PLACE
    several nodes            a TrainJob whose pods each run: python -m understudy.platform.launch PLACE

UNDERSTUDY_ACCELERATE names what accelerate is configured by: "ddp" (default), "fsdp" or a file.
UNDERSTUDY_GRACE_SECONDS (280) is how long training processes may take to save after a SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.errors import ConfigError, Preempted, UnderstudyError
from understudy.platform.launch_request import REQUEST, Exchange, Request, read_failure, read_result
from understudy.platform.where import WORKER
from understudy.records import Record

if TYPE_CHECKING:
    from understudy.config.platform import LaunchSettings

SETTINGS = "UNDERSTUDY_LAUNCH"
CONFIGURATIONS = Path(__file__).parent / "accelerate"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE_SECONDS = 280  # less than terminationGracePeriodSeconds of the runtimes in k8s/infrastructure/runtimes


def launched(
    step: str, config: Mapping[str, Any], inputs: Mapping[str, Record | None], outputs: Sequence[type[Record]]
) -> tuple[Record, ...] | None:
    """Run a step's training in processes of its own and return its records; None when it is to run here.

    Args:
        step: module of `understudy.platform.steps` whose `run(config, **inputs)` is called in each process.
        config: the step's config.
        inputs: its records, by the name of the argument.
        outputs: the kinds of records that `run` returns, in order.

    Raises:
        ConfigError: UNDERSTUDY_LAUNCH is not what LaunchSettings describes, or the cluster refuses the job.
        Preempted: this process was told to end; the training saved its state and was ended.
        UnderstudyError: the training failed; of the class that it raised, if it raised one for people.
    """
    settings = launch_settings()
    if settings is None or WORKER in os.environ or settings.nodes * max(1, settings.gpus_per_node) <= 1:
        return None
    request = Request(step, config, inputs, outputs)
    if settings.nodes == 1:
        return _launch_here(request, settings)
    from understudy.platform.trainjob import launch_train_job

    return launch_train_job(request, settings)


def launch_settings() -> LaunchSettings | None:
    """Read UNDERSTUDY_LAUNCH; None when it is unset or empty."""
    text = os.environ.get(SETTINGS)
    if not text:
        return None
    from pydantic import ValidationError

    from understudy.config.platform import LaunchSettings

    try:
        return LaunchSettings.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(
            f"{SETTINGS} is not what this version expects ({problems}). Compile the pipeline again with the version "
            "of the image: understudy pipeline compile."
        ) from error


def accelerate_command(place: str, num_processes: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the command that starts this machine's processes of a training.

    Args:
        place: where request and result lie.
        num_processes: of this machine.
        environment: PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT (as Kubeflow Trainer sets them)
            tell the other machines; UNDERSTUDY_ACCELERATE the configuration.
    """
    nodes = int(environment.get("PET_NNODES", "1"))
    network = ["--main_process_port", "0"]  # any free one
    if nodes > 1:
        network = ["--same_network", "--main_process_ip", environment["PET_MASTER_ADDR"]]
        network += ["--main_process_port", environment["PET_MASTER_PORT"]]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(_configuration(environment.get("UNDERSTUDY_ACCELERATE") or "ddp"))),
        *("--num_machines", str(nodes), "--machine_rank", environment.get("PET_NODE_RANK", "0")),
        *("--num_processes", str(nodes * num_processes)),
        *network,
        *("--module", "understudy.platform.worker", place),
    ]


class Supervised:
    """A command of accelerate whose processes get the signals that this process gets, and time to save."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.signalled = False

    def run(self) -> int:
        """Run to its end and return the exit status; a SIGTERM or SIGINT is passed on once, as SIGTERM."""
        grace_seconds = os.environ.get("UNDERSTUDY_GRACE_SECONDS", str(_GRACE_SECONDS))
        # torchrun, which accelerate is built on, kills processes that need longer than this (30 s otherwise).
        environment = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": grace_seconds, WORKER: "1"}
        # A session of its own: a terminal's Ctrl-C must reach the processes once, through us.
        process = subprocess.Popen(self.command, env=environment, start_new_session=True)
        with self._passing_signals(process):
            return process.wait()

    @contextmanager
    def _passing_signals(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        def pass_on(number: int, frame: Any) -> None:
            if not self.signalled:
                self.signalled = True
                process.send_signal(signal.SIGTERM)

        main_thread = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, pass_on) for number in _SIGNALS if main_thread}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _launch_here(request: Request, settings: LaunchSettings) -> tuple[Record, ...]:
    workdir = Path(os.environ.get("UNDERSTUDY_WORKDIR", tempfile.gettempdir()))
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="launch-", dir=workdir) as folder:
        exchange = Exchange(folder)
        exchange.write(REQUEST, request.to_json())
        supervised = Supervised(accelerate_command(folder, settings.gpus_per_node))
        status = supervised.run()
        if status == 0 and (returned := read_result(exchange, request)) is not None:
            return returned
        if failure := read_failure(exchange):
            raise failure
    if supervised.signalled:
        raise Preempted(f"Step {settings.step} was interrupted before it had state worth saving. Run it again.")
    raise UnderstudyError(
        f"Step {settings.step}: `accelerate launch` on {settings.gpus_per_node} GPUs ended with status {status} and "
        "without a result. The traceback of its processes stands in the log above."
    )


def _configuration(name: str) -> Path:
    path = CONFIGURATIONS / f"{name}.yaml" if name in ("ddp", "fsdp") else Path(name)
    if not path.is_file():
        raise ConfigError(f"UNDERSTUDY_ACCELERATE={name!r}: no such file. Use ddp, fsdp or a file of accelerate's.")
    return path


def main(arguments: list[str]) -> int:
    """Run one node of a TrainJob: the only argument is the place; return the exit status of the pod."""
    exchange = Exchange(arguments[0])
    supervised = Supervised(accelerate_command(exchange.uri, int(os.environ.get("PET_NPROC_PER_NODE", "1"))))
    status = supervised.run()
    if status == 0:
        return 0
    failure = read_failure(exchange)
    if supervised.signalled:
        return Preempted.exit_code
    return failure.exit_code if failure else (status if 0 < status < 128 else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
