"""Whole align steps on a GPU, ours and TRL's, each turn of each in a process of its own; bar: 5 times TRL's RLOO."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks import gpu_works
from benchmarks.aligning import Clock, OurStep, PeerStep, Work, formula_mib, least_flops
from benchmarks.device import DEVICE, ON_GPU, WIDTH, Profiler
from benchmarks.gpu_works import WORK, Found, Keep, least_decode_seconds
from benchmarks.subjects import num_parameters
from benchmarks.timing import median

TURNS = 2 if ON_GPU else 1
ROUNDS = 2 if ON_GPU else 1  # that are timed in a turn, of every contender
_SPARE = 1.25  # a turn may take so much longer than the one before


def whole_steps(
    peers: Sequence[str], floor: Mapping[str, float], run: Callable[..., Found], left: Callable[[], float], keep: Keep
) -> Found:
    """Seconds of a step by precision: ours, the peers', the floor; ratios, peak memory beside the formula, failures.

    Args:
        peers: TRL's trainers.
        floor: what the device reaches.
        run: measures one contender, or the profile, in a process of its own.
        left: seconds until nothing more should begin; after the first turn nobody begins who would need more.
        keep: is told what there is after every measurement.
    """
    names = ["ours", *peers]
    found: Found = {precision: _nothing_yet(precision, names, floor) for precision in WIDTH}
    took: dict[tuple[str, str], float] = {}
    for turn in range(TURNS):
        for precision in WIDTH:
            for name in names[:: -1 if turn % 2 else 1]:  # nobody always follows the same neighbour
                if turn and left() < _SPARE * took[precision, name]:
                    continue
                told = run("contender", "--contender", name, "--precision", precision)
                took[precision, name] = told.get("took_seconds", 0.0)
                _note(found[precision], name, turn, told)
                keep(found)
        if not turn:
            found["profile"] = run("profile", "--precision", "bf16")
            keep(found)
    return found


def _nothing_yet(precision: str, names: Sequence[str], floor: Mapping[str, float]) -> Found:
    work = dataclasses.replace(WORK, precision=precision)
    least = {"formula_mib": formula_mib(work, gpu_works.model()), "least_seconds": least_step_seconds(work, floor)}
    return least | {"seconds": {name: [None] * TURNS for name in names}, "peak_mib": {}, "failed": {}}


def least_step_seconds(work: Work, floor: Mapping[str, float]) -> float:
    """Seconds that no implementation of our step can avoid on a device.

    Sampling reads the weights and the cache once a token, or multiplies, whichever takes longer; the rest multiplies
    (`benchmarks.aligning.least_flops`).
    """
    model, rate = gpu_works.model(), floor[f"{work.precision}_flops_per_second"]
    embedding, parameters = model.get_input_embeddings().weight, num_parameters(model)
    products = 2 * parameters * work.read_tokens / rate
    reading = work.response_tokens * least_decode_seconds(work.precision, work.prompts * work.repeats, floor)
    whole = least_flops(work, parameters, embedding.numel(), embedding.shape[1]) / rate
    return max(products, reading) + whole - products


def _note(told: Found, name: str, turn: int, one: Found) -> None:
    """Add a turn of one contender."""
    told["seconds"][name][turn] = one.get("seconds")
    if "peak_mib" in one:
        told["peak_mib"][name] = max(told["peak_mib"].get(name, 0.0), one["peak_mib"])
    if "failed" in one:
        told["failed"][name] = one["failed"]
    told |= summary(told["seconds"])
    if "ours_seconds" in told:
        told["share_of_floor"] = told["least_seconds"] / told["ours_seconds"]


def summary(seconds: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Medians, and ratios to ours of the turns in which both ran."""
    told = {}
    for name, values in seconds.items():
        if ran := [value for value in values if value is not None]:
            told[f"{name}_seconds"] = median(ran)
        pairs = zip(values, seconds["ours"], strict=True)
        ratios = [peer / ours for peer, ours in pairs if peer is not None and ours is not None]
        if ratios and name != "ours":
            told[f"{name}_ratio"] = median(ratios)
    return told


def contender(name: str, precision: str) -> Found:
    """Seconds of a step, and the peak of what torch allocates on the device, of ours or a peer's."""
    work = dataclasses.replace(WORK, precision=precision)
    step = OurStep(work, DEVICE) if name == "ours" else PeerStep(work, name, DEVICE)
    found = {"seconds": step.seconds(ROUNDS)}
    return found | ({"peak_mib": torch.cuda.max_memory_allocated() / 2**20} if ON_GPU else {})


def profiled_round(precision: str) -> Found:
    """The kernels of one warm round of ours."""
    return {"lines": round_profile(dataclasses.replace(WORK, precision=precision))}


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
    recorder = Recorder()
    OurStep(work, DEVICE).run(2, recorder)
    return recorder.lines
