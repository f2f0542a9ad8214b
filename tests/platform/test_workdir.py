"""The working directory's lock: one run at a time, gone with its holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from understudy.errors import ConfigError, WorkdirBusy
from understudy.platform import workdir

HOLD = """
import sys, time
from pathlib import Path
from understudy.platform import workdir
with workdir.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_by_pid_and_path_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(WorkdirBusy, match=f"process {holder.pid} ") as refused, workdir.lock(tmp_path):
        pass
    assert str(tmp_path) in str(refused.value) and refused.value.exit_code == 2
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with workdir.lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / workdir.LOCK_NAME).read_text()


def test_a_step_waits_a_bounded_time_for_one_that_outlived_its_run(tmp_path: Path) -> None:
    with workdir.step_lock(tmp_path):
        started = time.monotonic()
        with pytest.raises(WorkdirBusy, match="in use by process"), workdir.step_lock(tmp_path, timeout_seconds=0.3):
            pass
    assert 0.3 <= time.monotonic() - started < 5


def test_a_workdir_that_is_a_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ConfigError, match="cannot be created.*--workdir"):
        workdir.prepare(path)
