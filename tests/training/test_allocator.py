"""Buffers that are freed are used again without asking the system for their pages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from understudy.training import allocator

# A round makes ten buffers of 12 MiB and frees them. How much glibc keeps by itself depends on how they happen to lie,
# so it is told first to give back every block of 128 KiB, as it does with the first ones.
ROUNDS = """
import ctypes, json, resource, sys
import torch
from understudy.training.loop import create_accelerator

ctypes.CDLL(None).mallopt(-3, 131072)
if sys.argv[1] == "kept":
    create_accelerator("fp32", "cpu")
faults = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(3 << 20) for _ in range(10)]
    del made
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(faults))
"""
PAGES = 10 * (12 << 20) // 4096


def _faults(kind: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", ROUNDS, kind], capture_output=True, text=True, check=True, timeout=120)
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_rounds_after_the_first_few_ask_for_no_pages_again() -> None:
    given_back, kept = _faults("given back"), _faults("kept")
    assert min(given_back) > PAGES / 2
    # Until its buffers have found their places a round may ask for some of the ten again: one mostly, five were seen.
    assert kept[0] > PAGES / 2 and sum(kept[1:]) < 2 * PAGES and max(kept[-3:]) < PAGES / 50


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False


def test_what_an_older_version_refuses_is_set_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Old:
        def mallopt(self, name: int, size: int) -> int:
            asked.append((name, size))
            return int(size <= 1 << 25)

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Old())
    assert allocator.keep_freed_memory() is True
    assert asked == [(-3, 1 << 30), (-3, 1 << 25), (-1, 1 << 30), (-1, 1 << 25)]
