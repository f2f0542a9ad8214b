"""How lines reach the process that writes to MLflow: a process of this step's own, or the one of the whole run.

Importing MLflow takes seconds of processor time. Within one run on one machine it is paid once: the process that
writes the parent run also listens on a socket (SOCKET_VARIABLE names it) and writes the runs of all steps.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Protocol

SOCKET_VARIABLE = "UNDERSTUDY_TRACKING_SOCKET"
_STOP_SECONDS = 5.0
_CONNECT_SECONDS = 5.0


class Channel(Protocol):
    """One conversation with a writing process, in lines of JSON both ways."""

    def write(self, line: str) -> None:
        """Send a line; raises OSError when the other side is gone."""

    def answers(self) -> Iterator[str]:
        """Yield what the other side says until it ends."""

    def stop(self) -> None:
        """Say nothing more and let go."""


class WorkerProcess:
    """A writing process that ends with this conversation; with `listen_at` it serves others beside it."""

    def __init__(self, listen_at: str | None = None) -> None:
        command = [sys.executable, "-m", "understudy.platform.tracking_worker"]
        self._process = subprocess.Popen(
            command + ([listen_at] if listen_at else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"},
            start_new_session=True,  # Ctrl-C is for the step; the worker ends when the step has said its last line
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def write(self, line: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answers(self) -> Iterator[str]:
        """Yield answers until the process has ended."""
        assert self._process.stdout is not None
        yield from self._process.stdout
        self._process.wait()

    def stop(self) -> None:
        """Close its input; it may outlive this process while it delivers what a killed step said."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return


class WorkerConnection:
    """A conversation with the run's writing process.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(_CONNECT_SECONDS)
            self._socket.connect(path)
            self._socket.settimeout(None)
        except OSError:
            self._socket.close()
            raise
        self._stream = self._socket.makefile("r", encoding="utf-8")

    def write(self, line: str) -> None:
        """Send a line."""
        self._socket.sendall(line.encode() + b"\n")

    def answers(self) -> Iterator[str]:
        """Yield answers until the other side closes."""
        try:
            yield from self._stream
        except OSError:
            return

    def stop(self) -> None:
        """Close the connection."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # closed by the other side already
            pass
        self._socket.close()


def open_channel() -> Channel:
    """Return a conversation with the run's writing process if there is one, else with one of our own."""
    path = os.environ.get(SOCKET_VARIABLE)
    if path:
        try:
            return WorkerConnection(path)
        except OSError:  # it is gone; a process of our own says the same
            pass
    return WorkerProcess()
