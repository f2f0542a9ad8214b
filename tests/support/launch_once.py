"""Launches the request of `train_jobs` as a step's pod does; exits as the command line does."""

from __future__ import annotations

import sys

from support.train_jobs import POLICY, request, settings

from understudy.errors import UnderstudyError
from understudy.platform.trainjob import launch_train_job


def main() -> int:
    try:
        returned = launch_train_job(request(), settings())
    except UnderstudyError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    print("returned the policy" if returned == (POLICY,) else returned, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
