"""Checkpoints as safetensors and JSON that survive being killed at any moment.

A checkpoint is a folder `step-NNNNNNNN` with `tensors.safetensors`, `state.json` and, written last,
`manifest.json` with their digests. It is written aside and renamed; a folder without a valid manifest is not
one. Randomness needs no state: every step seeds itself from (run seed, step). Tensors are whole, whatever the number
of processes that hold them or shards of them, so that a run resumes on another number. Where the folder ends with the
machine, as a pod's does, a mirror keeps copies elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from understudy.data.files import file_sha256, sync
from understudy.errors import UnderstudyError
from understudy.models.refused_writes import refused_as_os_error

TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
FILES = (TENSORS, _STATE, _MANIFEST)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at a step."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Mirror(Protocol):
    """A place where copies of checkpoints outlive this machine; of one lineage, as `Checkpoints` are."""

    def put(self, folder: Path) -> None:
        """Copy a whole checkpoint's folder, unless it is there; a failure must not end the training."""

    def fetch_newer(self, folder: Path, step: int) -> bool:
        """Bring the newest whole copy that is newer than `step` into `folder`; say whether there was one."""

    def clear(self) -> None:
        """Let no copy be found again."""


class Checkpoints:
    """The checkpoints of one lineage (same data, code, configuration and parent) in a folder.

    Args:
        folder: where they are.
        keep: how many, the newest.
        mirror: where copies outlive the folder.
    """

    def __init__(self, folder: Path, keep: int = 2, mirror: Mirror | None = None) -> None:
        self.folder, self.keep, self.mirror = folder, keep, mirror

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint atomically and drop all but the newest `keep`; one that is there stays.

        Raises:
            UnderstudyError: the disk refuses the write; the older checkpoints stay as they were.
        """
        final = self.folder / checkpoint_name(step)
        if is_whole(final):  # a run's last may be its last round's; it is a function of the step
            self._copy(final)
            return
        aside = self.folder / f".{final.name}.{os.getpid()}"
        try:
            aside.mkdir(parents=True, exist_ok=True)
            _write(aside, tensors, state)
            if final.exists():
                shutil.rmtree(final)
            os.rename(aside, final)
            sync(self.folder)
        except OSError as error:
            raise UnderstudyError(
                f"Checkpoint of step {step} could not be written to {self.folder}: {error.strerror or error}. "
                "The previous checkpoint is intact; free disk space and run the same command to resume."
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._copy(final)
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self, device: torch.device | str = "cpu") -> Checkpoint | None:
        """Return the newest checkpoint whose digests hold, or None; what killed processes left aside goes.

        Call it in the one process that saves here, before it does.
        """
        for aside in self.folder.glob(".step-*"):
            shutil.rmtree(aside, ignore_errors=True)
        found = self._newest_whole()
        if self.mirror is not None and self.mirror.fetch_newer(self.folder, -1 if found is None else step_of(found)):
            found = self._newest_whole()
        return None if found is None else _read(found, device)

    def clear(self) -> None:
        """Remove all checkpoints, once the step's output is stored."""
        if self.mirror is not None:
            self.mirror.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _copy(self, folder: Path) -> None:
        if self.mirror is not None:
            self.mirror.put(folder)

    def _newest_whole(self) -> Path | None:
        return next((folder for folder in reversed(self._folders()) if is_whole(folder)), None)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder, by its name."""
    return int(folder.name.removeprefix("step-"))


def is_whole(folder: Path) -> bool:
    """Say whether a folder is a checkpoint whose digests hold."""
    try:
        digests = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return bool(digests) and all(file_sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimiser's per-parameter state into named tensors."""
    return {
        f"{name}.{index}.{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def restore_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` saved; learning rates are a function of the step and not stored."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{name}."):
            index, field = key.removeprefix(f"{name}.").split(".", 1)
            like = parameters[int(index)]
            state.setdefault(int(index), {})[field] = placed_like(like, value) if value.shape == like.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def trainable_tensors(name: str, module: torch.nn.Module) -> dict[str, Tensor]:
    """Named trainable parameters (tied weights once), for saving."""
    return {f"{name}.{key}": value.detach() for key, value in module.named_parameters() if value.requires_grad}


@torch.no_grad()
def restore_parameters(name: str, module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `trainable_tensors` saved."""
    for key, value in module.named_parameters():
        if value.requires_grad:
            value.copy_(placed_like(value, tensors[f"{name}.{key}"]))


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor whose shards are spread over processes, as a whole in each: all must call."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Shard a whole tensor as a parameter is, where that is sharded over processes."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def _write(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    # safetensors refuses tensors that share memory, and views of a larger one.
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with refused_as_os_error(folder):
        save_file(plain, folder / TENSORS)
    (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")
    names = (TENSORS, _STATE)
    for name in names:
        sync(folder / name)
    (folder / _MANIFEST).write_text(json.dumps({name: file_sha256(folder / name) for name in names}), encoding="utf-8")
    sync(folder / _MANIFEST)


def _read(folder: Path, device: torch.device | str) -> Checkpoint:
    from safetensors.torch import load_file

    # Accelerate numbers the processor of each process, "cpu:0", which safetensors does not know.
    place = "cpu" if torch.device(device).type == "cpu" else str(device)
    tensors = load_file(folder / TENSORS, device=place)
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return Checkpoint(step_of(folder), tensors, state)
