"""The working directory: its layout, the ids of runs in it, and the lock that lets one run at a time use it.

The lock is the kernel's (flock): it ends with the process that holds it, however that ended, so there is no
stale lock to remove. The file's content only tells a person who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from understudy.data.files import temporary_folder
from understudy.errors import ConfigError, WorkdirBusy

LOCK_NAME = "run.lock"
STEP_LOCK_NAME = "step.lock"


def prepare(workdir: Path) -> Path:
    """Create the working directory and return its absolute path.

    Raises:
        ConfigError: it is a file, or cannot be created or written.
    """
    workdir = workdir.expanduser().absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The working directory {str(workdir)!r} cannot be created: {error.strerror}. "
            "Name another one with --workdir DIR."
        ) from error
    if not os.access(workdir, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(
            f"The working directory {str(workdir)!r} is not writable for user {os.getuid()}. "
            "Change its owner, or name another one with --workdir DIR."
        )
    return workdir


def new_run_id() -> str:
    """Return an id that sorts by time and is safe in file names and Kubernetes names."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + secrets.token_hex(2)


def run_folder(workdir: Path, run_id: str) -> Path:
    """Return (and create) the folder of one run."""
    folder = workdir / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def scratch_folder(workdir: Path) -> Iterator[Path]:
    """Give a temporary folder on the disk that has room for models; where that may only be read, the system's will do.

    Raises:
        OSError: for another reason, as a full disk.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder(workdir))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            system = tempfile.TemporaryDirectory(prefix="understudy-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(system))
        yield folder


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Hold the working directory for one run.

    Raises:
        WorkdirBusy: naming the holder's process id and the path.
    """
    path = workdir / LOCK_NAME
    with _open_lock(path) as file:
        if not _try_lock(file):
            raise WorkdirBusy(_busy_message(workdir, file))
        _sign(file)
        yield


@contextmanager
def step_lock(workdir: Path, timeout_seconds: float = 120.0) -> Iterator[None]:
    """Hold the working directory for one step, waiting for a step that outlived its killed run.

    Raises:
        WorkdirBusy: another step still works here after `timeout_seconds`.
    """
    with _open_lock(workdir / STEP_LOCK_NAME) as file:
        deadline = time.monotonic() + timeout_seconds
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise WorkdirBusy(_busy_message(workdir, file))
            time.sleep(0.1)
        _sign(file)
        yield


@contextmanager
def _open_lock(path: Path) -> Iterator[IO[str]]:
    # "a+" creates the file without truncating what the holder wrote.
    with path.open("a+", encoding="utf-8") as file:
        yield file


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "since": time.strftime("%H:%M:%S")}))
    file.flush()


def _busy_message(workdir: Path, file: IO[str]) -> str:
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read())
    except ValueError:
        holder = {}
    who = f"process {holder['pid']} (since {holder['since']})" if holder else "another process"
    return (
        f"The working directory {str(workdir)!r} is in use by {who}. "
        "Wait until it ends, stop it, or name another directory with --workdir DIR."
    )
