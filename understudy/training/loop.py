"""What every loop shares: where it runs, to whom it reports, when it must stop, how steps are seeded."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch

from understudy.errors import Preempted, TrainingDiverged
from understudy.models.devices import resolve_device
from understudy.tracker import Tracker
from understudy.training.allocator import keep_freed_memory
from understudy.training.checkpoint import Checkpoint, Checkpoints, whole_tensor
from understudy.training.processes import Processes

# Others wait this long for process 0 to publish, and for a peer that died without a word.
_PATIENCE = timedelta(minutes=30)


@dataclass
class Loop:
    """The surroundings of a loop, given to it so that it knows nothing of platforms."""

    accelerator: Any
    tracker: Tracker
    checkpoints: Checkpoints
    should_stop: Callable[[], bool] = lambda: False
    history: list[dict[str, float]] = field(default_factory=list)
    processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        self.processes = Processes(self.accelerator)

    def log(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Report to the tracker and keep what does not depend on the clock as the run's history."""
        entry = {"step": step, **metrics}
        # A resumed run measures once more what it measured just before it was stopped.
        if not self.history or self.history[-1] != entry:
            self.history.append(entry)
        if self.processes.is_main:
            self.tracker.log(step, {**metrics, **timings})

    def progress(self, done: int, total: int, unit: str, shown: Mapping[str, float]) -> None:
        """Report progress from the main process."""
        if self.processes.is_main:
            self.tracker.progress(done, total, unit, shown)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, in every process."""
        return self.processes.from_main(lambda: self.checkpoints.latest(self.accelerator.device))

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint from the main process; returns in all when it is on disk."""
        whole = self.processes.whole(tensors)
        self.processes.on_main(lambda: self.checkpoints.save(step, whole, state))

    def stop_if_asked(self, save: Callable[[], None], step: int, unit: str) -> None:
        """Save and raise when a signal asked any process to stop; all stop at the same step.

        Raises:
            Preempted: after the state was saved.
        """
        if self.processes.any(self.should_stop()):
            save()
            raise Preempted(f"Stopped at {unit} {step}; the state is saved. Run the same command again to resume.")


def create_accelerator(precision: str, device: str) -> Any:
    """Accelerate for device, precision and several processes.

    Raises:
        ConfigError: there is no such device.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    mixed = {"fp32": "no", "bf16": "bf16"}[precision]
    # Buffers (rotary frequencies) are equal from the start; to send them in each pass costs time, and breaks two
    # passes before one backward.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=_PATIENCE)]
    cpu = resolve_device(device) == "cpu"
    if cpu:
        keep_freed_memory()
    return Accelerator(mixed_precision=mixed, cpu=cpu, kwargs_handlers=handlers)


def step_seed(seed: int, *path: str | int) -> int:
    """A seed that depends on the run's seed and a path such as ("align", round, rank) and nothing else."""
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def learning_rate(step: int, total_steps: int, peak: float, schedule: str, warmup_fraction: float) -> float:
    """Learning rate of a step: linear warm-up, then constant, or a cosine to a tenth of the peak."""
    warmup = max(1, round(warmup_fraction * total_steps)) if warmup_fraction > 0 else 0
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    fraction = (step - warmup) / max(1, total_steps - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction))))


def set_learning_rate(optimizer: Any, value: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = value


def create_optimizer(module: torch.nn.Module, peak: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; decay on matrices only, as is usual for transformers."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(kept, lr=peak, betas=(0.9, 0.95), fused=True)
    optimizer.register_step_post_hook(_count_change)
    return optimizer


def _count_change(optimizer: Any, *_: Any) -> None:
    """A fused step does not raise the versions of parameters, by which engines see that weights have changed."""
    torch.autograd.graph.increment_version([p for group in optimizer.param_groups for p in group["params"]])


def finite_update(module: torch.nn.Module, optimizer: Any, max_grad_norm: float, loss: float, where: str) -> float:
    """Clip, check and apply one update; returns the gradient norm before clipping.

    Raises:
        TrainingDiverged: the loss or the norm is not finite; nothing was updated.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # Not accelerate's method: with sharded weights it compares the parameters of networks, which tensors refuse.
    clipped = torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
    norm = float(whole_tensor(clipped))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingDiverged(
            f"{where}: loss is {loss}, gradient norm is {norm}; nothing was updated. "
            "Lower the learning rate, or look at the rows named here."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


class Stopwatch:
    """Tokens per second since the start, or since a resume."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.tokens = 0

    def add(self, tokens: int) -> None:
        """Count processed tokens."""
        self.tokens += tokens

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def tokens_per_second(self) -> float:
        """Mean rate so far."""
        return self.tokens / max(1e-9, self.seconds)
