"""Whole align steps on a GPU, ours and TRL's."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import gpu_works
from benchmarks.aligning import Clock, OurStep, PeerStep, Work, formula_mib
from benchmarks.device import DEVICE, ON_GPU, WIDTH, Profiler
from benchmarks.gpu_works import WORK, Found, Keep, one_line
from benchmarks.timing import alternate, median

TURNS = 2 if ON_GPU else 1


def whole_steps(peers: list[str], keep: Keep) -> Found:
    """Whole steps, ours and TRL's in turns, and our peak memory beside the formula; bar: 5 times TRL with generate."""
    found: Found = {}
    for precision in WIDTH:
        work = dataclasses.replace(WORK, precision=precision)
        told = found[precision] = {"formula_mib": formula_mib(work, gpu_works.model())}
        runs: dict[str, Callable[[], float]] = {"ours": partial(_our_step, work, told)}
        runs |= {peer: partial(_peer_step, work, peer) for peer in peers}
        steps_in_turns(runs, told, partial(keep, found))
    return found | {"profile": round_profile(dataclasses.replace(WORK, precision="bf16"))}


def steps_in_turns(runs: Mapping[str, Callable[[], float]], told: Found, keep: Callable[[], None]) -> None:
    """Tell the seconds of all runs, None for one that failed, and why it did; kept after each."""
    seconds: dict[str, list[float | None]] = {name: [] for name in runs}
    failed: dict[str, str] = {}

    def attempt(name: str) -> None:
        try:
            seconds[name].append(runs[name]())
        except Exception as error:  # out of memory, or a peer's own: the others are worth having
            seconds[name].append(None)
            failed[name] = one_line(error)
        told.update(seconds=seconds, failed=failed, **summary(seconds))
        keep()

    alternate({name: partial(attempt, name) for name in runs}, TURNS)


def summary(seconds: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Medians, and ratios to ours of the turns in which both ran."""
    told = {}
    for name, values in seconds.items():
        if ran := [value for value in values if value is not None]:
            told[f"{name}_seconds"] = median(ran)
        pairs = zip(values, seconds["ours"], strict=False)  # one of them may not have had its turn yet
        ratios = [peer / ours for peer, ours in pairs if peer is not None and ours is not None]
        if ratios and name != "ours":
            told[f"{name}_ratio"] = median(ratios)
    return told


def _our_step(work: Work, told: Found) -> float:
    _clear()
    step = OurStep(work, DEVICE)
    if not ON_GPU:
        return step.seconds(3)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # what a peer has left is not ours
    seconds = step.seconds(3)
    told["peak_mib"] = max(told.get("peak_mib", 0.0), (torch.cuda.max_memory_allocated() - before) / 2**20)
    return seconds


def _peer_step(work: Work, peer: str) -> float:
    _clear()
    return PeerStep(work, peer, DEVICE).seconds(1)


def _clear() -> None:
    """Forget the step before: accelerate allows a process one precision, and what is in cycles waits for collection."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


class Recorder(Clock):
    """Profiles the third round: what comes before makes what a round finds ready."""

    def tick(self) -> None:
        """A round ended."""
        super().tick()
        if len(self.ends) == 2:
            self._profiler = Profiler()
        elif len(self.ends) == 3:
            self.lines = self._profiler.stop()


def round_profile(work: Work) -> list[dict[str, Any]]:
    """The kernels of one warm round of ours."""
    _clear()
    recorder = Recorder()
    OurStep(work, DEVICE).run(2, recorder)
    return recorder.lines
