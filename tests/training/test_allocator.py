"""Buffers that are freed are used again without asking the system for their pages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from understudy.training import allocator

# A round makes ten buffers and frees them. How much glibc keeps by itself depends on how they happen to lie,
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
    made = [torch.ones(int(sys.argv[2]) << 18) for _ in range(10)]
    del made
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(faults))
"""
PAGES = 10 * (12 << 20) // 4096


def _faults(kind: str, megabytes: int = 12) -> list[int]:
    command = [sys.executable, "-c", ROUNDS, kind, str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_rounds_after_the_first_few_ask_for_no_pages_again() -> None:
    given_back, kept = _faults("given back"), _faults("kept")
    assert min(given_back) > PAGES / 2
    # Until its buffers have found their places a round may ask for some of the ten again: one mostly, five were seen.
    assert kept[0] > PAGES / 2 and sum(kept[1:]) < 2 * PAGES and max(kept[-3:]) < PAGES / 50


def test_larger_buffers_are_given_back() -> None:
    faults = _faults("kept", megabytes=48)
    assert min(faults) > 10 * (48 << 20) // 4096 / 2


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False
