"""What a run costs in GPU hours: estimated before, bounded by deadlines, measured after.

A GPU hour is one GPU held for one hour from the start of its step: held is what is paid for, used or not. Work is
counted in token passes, as PolicyRef does: a forward pass of a token 1, forward and backward 3, a sampled token 1.

    GPU hours of a step = token passes / (measured passes per second and GPU) / 3600

The rate is the same on one GPU and on several only as far as the work scales, and differs by model and GPU: measure it
(`schedule cost` prints it) and write it to `platform.estimate` in the params of the schedule.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from understudy.config import Params
from understudy.config.platform import GpuStep
from understudy.training.methods import BACKWARD
from understudy.training.passes import align_passes

if TYPE_CHECKING:
    from understudy.tracker import Tracker

GPU_STEPS = ("sft", "align", "sft_longer", "evaluate")
CPU_STEPS = ("preflight", "ingest")
METRIC = "gpu_hours"
_POLICIES_EVALUATED = 4  # sft, aligned, sft_longer, and the champion, which there may be


@dataclass(frozen=True)
class Estimate:
    """GPU hours that one run is expected to take, by step, and where the numbers come from."""

    gpu_hours: float
    steps: Mapping[str, float]
    token_passes: Mapping[str, int]
    basis: str


def estimate(params: Params) -> Estimate:
    """Estimate one run from its params, the tokens to train on and a measured rate.

    Lengths that are not known before are taken at their limits, so the estimate is high rather than low
    (`understudy.training.passes` has the work of each method).
    """
    known = params.platform.estimate
    passes = token_passes(params)
    rate = {step: known.token_passes_per_gpu_second for step in GPU_STEPS}
    rate["evaluate"] = known.sampled_tokens_per_gpu_second
    hours = {step: round(passes[step] / rate[step] / 3600, 3) for step in GPU_STEPS}
    basis = (
        f"{known.train_tokens} training tokens, {known.token_passes_per_gpu_second:g} token passes and "
        f"{known.sampled_tokens_per_gpu_second:g} sampled tokens per second and GPU"
    )
    return Estimate(round(sum(hours.values()), 2), hours, passes, basis)


def token_passes(params: Params) -> dict[str, int]:
    """Return the token passes of each GPU step, at the limits of all lengths."""
    known = params.platform.estimate
    aligned = align_passes(params.align, known.prompt_tokens)
    return {
        "sft": round(params.sft.epochs * known.train_tokens * BACKWARD),
        "align": aligned,
        "sft_longer": aligned,  # the baseline gets the compute that align used
        "evaluate": _responses_evaluated(params) * params.evaluation.max_response_tokens,
    }


def _responses_evaluated(params: Params) -> int:
    """Return how many responses evaluation samples at most: to tune temperatures, then to compare."""
    from understudy.platform.steps.evaluate import RANDOM_BASE_PROMPTS

    settings = params.evaluation
    tuning = settings.max_prompts // 2 * len(settings.temperatures) if settings.judges else 0
    each = tuning + 3 * settings.max_prompts  # greedy, T=1, tuned
    # Before training: greedy and T=1; of random weights a few.
    scratch = params.model.init == "scratch"
    base = min(RANDOM_BASE_PROMPTS, settings.max_prompts) if scratch else 2 * settings.max_prompts
    return _POLICIES_EVALUATED * each + base


def gpus_of(params: Params) -> dict[str, int]:
    """Return how many GPUs each GPU step holds."""
    settings = {step: params.platform.step(step) for step in GPU_STEPS}  # type: ignore[arg-type]
    return {step: item.nodes * item.gpus for step, item in settings.items() if isinstance(item, GpuStep)}


def over_budget(params: Params, expected: Estimate, budget_gpu_hours: float) -> str | None:
    """Return why a budget cannot hold: the estimate, or a step's deadline, is above it; None if it can."""
    if expected.gpu_hours > budget_gpu_hours:
        worst = max(expected.steps, key=lambda step: expected.steps[step])
        return (
            f"the estimate is {expected.gpu_hours:g} GPU hours ({worst} {expected.steps[worst]:g}; {expected.basis}), "
            f"the budget {budget_gpu_hours:g}; raise budget_gpu_hours, lower the work, or correct platform.estimate"
        )
    for step, gpus in gpus_of(params).items():
        seconds = params.platform.step(step).timeout_seconds  # type: ignore[arg-type]
        if gpus * seconds / 3600 > budget_gpu_hours:
            limit = int(budget_gpu_hours * 3600 / gpus)
            return (
                f"step {step} may hold {gpus} GPU for {seconds} s = {gpus * seconds / 3600:g} GPU hours, the budget is "
                f"{budget_gpu_hours:g}; lower platform.steps.{step}.timeout_seconds to {limit} or less in params.yaml, "
                "compile and pin that version"
            )
    return None


def deadline_seconds(params: Params, budget_gpu_hours: float) -> float:
    """Return how long a run may hold its GPUs (the most that a step holds) before its budget is spent."""
    return budget_gpu_hours * 3600 / max(1, *gpus_of(params).values())


def gpus_held() -> int:
    """Return how many GPUs this step holds, over all of its processes; without torch or a GPU it is none."""
    torch = sys.modules.get("torch")  # a step that holds GPUs has imported it by the time it ends
    if torch is None or not torch.cuda.is_available():
        return 0
    return int(os.environ.get("WORLD_SIZE") or torch.cuda.device_count())


def report(tracker: Tracker, started: float) -> None:
    """Log what an attempt of a step has cost, as the metric `gpu_hours`; attempts add up (see `schedule cost`).

    Args:
        tracker: the step's.
        started: time.monotonic() at the start of the attempt.
    """
    if gpus := gpus_held():
        # Each attempt is a point of its own, at the second it ended: a tracker keeps one value per step number.
        tracker.log(int(time.time()), {METRIC: gpus * (time.monotonic() - started) / 3600})


@dataclass(frozen=True)
class Cost:
    """What one run of KFP has cost, and the rate to estimate the next one with."""

    run_id: str
    gpu_hours: float
    steps: Mapping[str, float]
    token_passes_per_gpu_second: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def actual(client: Any, experiment: str, run_id: str) -> Cost:
    """Read from MLflow what a run has cost: the sum of every attempt of every step.

    Args:
        client: an MlflowClient.
        experiment: name of MLflow's experiment.
        run_id: KFP's id of the run, as steps tag it (`understudy.run_id`).
    """
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], f"tags.`understudy.run_id` = '{run_id}'") if found else []
    steps: dict[str, float] = {}
    passes = seconds = 0.0
    for run in runs:
        step = run.data.tags.get("understudy.step", "")
        points = client.get_metric_history(run.info.run_id, METRIC)
        if not points:
            continue
        hours = sum(point.value for point in points)
        steps[step] = round(steps.get(step, 0.0) + hours, 4)
        if step != "evaluate" and (counted := run.data.tags.get("understudy.result.compute_token_passes")):
            passes, seconds = passes + float(counted), seconds + hours * 3600
    rate = round(passes / seconds, 1) if seconds else None
    return Cost(run_id, round(sum(steps.values()), 4), steps, rate)


def overdue(runs: Iterable[Any], limits: Mapping[str, float], now: float) -> list[tuple[Any, float, float]]:
    """Return the active runs that hold GPUs for longer than their schedule's budget allows.

    Counted from the start of the first GPU step, or from the run's creation while KFP shows no step's start, so waiting
    in a queue between steps counts, too: a deadline, not a meter.

    Args:
        runs: of kfp_server_api.
        limits: seconds by id of the recurring run.
        now: seconds since the epoch.

    Returns:
        Run, seconds so far, seconds allowed.
    """
    found = []
    for run in runs:
        limit = limits.get(str(run.recurring_run_id or ""))
        if limit is None or run.state not in ("PENDING", "RUNNING", "PAUSED"):
            continue
        tasks = (run.run_details.task_details or []) if run.run_details else []
        starts = [task.start_time for task in tasks if task.start_time and task.display_name in GPU_STEPS]
        if not starts and any(task.display_name in CPU_STEPS for task in tasks):
            continue  # still on CPU, or waiting for its first GPU
        seconds = now - min(starts or [run.created_at]).timestamp()
        if seconds > limit:
            found.append((run, seconds, limit))
    return found
