"""One process of a launched training: `python -m understudy.platform.worker PLACE`, started by accelerate.

It reads the request at PLACE (a folder or an s3:// prefix), runs the step, and process 0 writes the result there.
"""

from __future__ import annotations

import os
import sys

from understudy.errors import UnderstudyError
from understudy.platform.launch_request import (
    FAILURE,
    REQUEST,
    RESULT,
    Exchange,
    Request,
    write_failure,
    write_result,
)
from understudy.platform.where import WORKER


def main(arguments: list[str]) -> int:
    """Run the request at the place that the only argument names; return the exit status of its error, or 0."""
    exchange = Exchange(arguments[0])
    os.environ[WORKER] = "1"
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        content = exchange.read(REQUEST)
        if content is None:
            raise UnderstudyError(f"There is no {REQUEST} at {exchange.uri}; the launcher writes it first.")
        request = Request.from_json(content)
        if is_main:  # what an earlier attempt left
            exchange.remove(FAILURE)
            exchange.remove(RESULT)
        from understudy.platform.context import tidy_up

        returned = request.run()
        if is_main:
            write_result(exchange, request, returned)
            tidy_up()
    except UnderstudyError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        write_failure(exchange, error)
        return error.exit_code
    finally:
        _leave_group()
    return 0


def _leave_group() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
