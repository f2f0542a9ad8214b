"""The process that writes MLflow runs: reads lines of JSON, batches, retries, answers with lines of JSON.

Started by `tracking_channel.WorkerProcess`. Each conversation is one run: the first over stdin, others over a socket
if its path was given. When one ends without a `close`, its step was killed: what it said is delivered and the run
marked KILLED, so that a retry finds it unfinished and continues it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from understudy.data.files import full_disk_words, is_full_disk
from understudy.platform.storage import first_line
from understudy.platform.tracking_run import Message, RunWriter

_PARENT_SECONDS = 60.0
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def main(listen_at: str | None = None) -> None:
    """Serve one run from stdin to its end, and those that come through the socket to theirs."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the end of input is what ends this process
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print must not mix with the answers
    guests = Guests(listen_at) if listen_at else None
    serve_run(sys.stdin, lambda data: os.write(answers, data), guests.host if guests else None)
    os.close(answers)
    if guests:
        guests.end()
    # Everything is delivered; taking MLflow's modules apart would keep the step waiting for another second or two.
    sys.stderr.flush()
    os._exit(0)


class Host:
    """The parent run as its steps see it: they may come before it has been opened."""

    def __init__(self) -> None:
        self._run_id: str | None = None
        self._known = threading.Event()

    def opened(self, run_id: str | None) -> None:
        """Say which run it is, or that it could not be opened."""
        self._run_id = run_id
        self._known.set()

    def run_id(self) -> str | None:
        """Return its run id once it is open, None when it could not be."""
        self._known.wait(_PARENT_SECONDS)
        return self._run_id


class Guests:
    """Conversations with steps of the run, each in a thread of its own."""

    def __init__(self, path: str) -> None:
        self.host = Host()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(path)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def end(self) -> None:
        """Take no more, and wait until those there are have been delivered."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("r", encoding="utf-8") as stream:
            serve_run(stream, connection.sendall, None, self.host)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # ends the thread that reads, which holds the stream


def serve_run(
    stream: IO[str], send: Callable[[bytes], object], own: Host | None = None, parent: Host | None = None
) -> None:
    """Write the run of one conversation, to its end."""

    def answer(**message: Any) -> None:
        with suppress(OSError):  # a killed step hears nothing, but what it said is still delivered
            send((json.dumps(message) + "\n").encode())

    inbox: queue.Queue[Message] = queue.Queue()
    threading.Thread(target=_read, args=(stream, inbox), daemon=True).start()
    opening = inbox.get()
    if opening["op"] != "open":
        return
    run = None
    try:
        if parent is not None and not opening["join_run_id"]:
            opening["join_run_id"] = parent.run_id()
        run = RunWriter(opening)
        if own is not None:
            own.opened(run.run_id)
        answer(run_id=run.run_id, experiment_id=run.experiment_id)
        answer(closed=run.serve(inbox, lambda text: answer(warning=text)))
    except Exception as error:  # the last word of this run, repeated by the step
        full = full_disk_words(error) if is_full_disk(error) else None
        answer(error=f"{type(error).__name__}: {first_line(error)}", full_disk=full)
    finally:
        if own is not None and run is None:
            own.opened(None)


def _read(stream: IO[str], inbox: queue.Queue[Message]) -> None:
    for line in stream:
        if line.endswith("\n"):
            inbox.put(json.loads(line))
    inbox.put({"op": "close", "status": "KILLED"})


if __name__ == "__main__":
    main(*sys.argv[1:])
