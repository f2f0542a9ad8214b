"""A step's process ends at once when all went well, and as always when not."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from importlib.machinery import ModuleSpec
__spec__ = ModuleSpec({name!r}, None)
from understudy.platform.quick_exit import leave_quickly_when_done

class Large:
    def __del__(self):
        print("torn down")

large = Large()
leave_quickly_when_done()
print("written", end="")
{end}
"""


@pytest.mark.parametrize(
    ("name", "end", "code", "printed"),
    [
        ("kfp.dsl.executor_main", "", 0, "written"),
        ("kfp.dsl.executor_main", "raise ValueError('bad')", 1, "writtentorn down\n"),
        ("pytest", "", 0, "writtentorn down\n"),
    ],
    ids=["step", "failed step", "other process"],
)
def test_a_step_that_succeeded_leaves_without_tearing_modules_down(
    name: str, end: str, code: int, printed: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(name=name, end=end)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, printed), done.stderr
