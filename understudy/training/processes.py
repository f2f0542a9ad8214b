"""The processes of one training job: who runs which rows, and how the results become one.

A job of several processes computes what one process computes, up to the order of float sums. Every process knows the
whole batch, runs the networks on its own rows and puts the outputs of all together, with the gradient of its own
(`over_rows`). From there on losses, rewards, advantages and choices are the same numbers in every process, and the
gradients are summed. One process is the case in which its rows are all rows.

Only JSON and raw bytes travel between processes, never pickled objects.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from understudy import errors
from understudy.models.language_model import TokenBatch
from understudy.training.checkpoint import Checkpoint, whole_tensor

T = TypeVar("T")


class Processes:
    """This process among those of its job.

    Attributes:
        rank: this process, counted from 0; process 0 alone tracks, saves and publishes.
        count: processes of the job.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank, self.count = int(accelerator.process_index), int(accelerator.num_processes)

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a shard of the weights (FSDP)."""
        return bool(self.accelerator.is_fsdp2)

    @property
    def is_main(self) -> bool:
        """Whether this process tracks, saves and publishes."""
        return self.rank == 0

    def prepare(self, module: nn.Module, optimizer: Any) -> tuple[Any, Any]:
        """A network and its optimiser as accelerate wraps them, sharded by the layers of this network."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            # It would look for the first network's layers in every other.
            named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP")
            plugin.transformer_cls_names_to_wrap = named.split(",") if named else None
        prepared: tuple[Any, Any] = self.accelerator.prepare(module, optimizer)
        return prepared

    def bounds(self, num_rows: int) -> list[int]:
        """First row of each process and the end: contiguous shares whose sizes differ by one at most."""
        return [rank * num_rows // self.count for rank in range(self.count + 1)]

    def deal(self, batches: Sequence[Sequence[T]]) -> list[tuple[Sequence[T], bool]]:
        """This process's part of some batches, as many parts for each: whole batches while they last, else rows.

        Where a batch has no row for this process its first row stands in, marked False, so that all processes run
        their networks equally often, as sharded weights require.
        """
        num_whole = len(batches) - len(batches) % self.count
        parts = [*batches[self.rank : num_whole : self.count]]
        parts += [batch[self.rank :: self.count] for batch in batches[num_whole:]]
        owners = [*batches[self.rank : num_whole : self.count], *batches[num_whole:]]
        return [(part, True) if part else (batch[:1], False) for part, batch in zip(parts, owners, strict=True)]

    def over_rows(self, forward: Callable[[TokenBatch], Tensor], batch: TokenBatch) -> Tensor:
        """What `forward` returns for the whole batch, shape (B, …), each process having run its own rows.

        In a process the gradient flows through its own rows alone: call `backward` with a loss of the whole.
        """
        sizes = [end - start for start, end in pairwise(self.bounds(batch.num_rows))]
        start = sum(sizes[: self.rank])
        # A process without a row runs the first one, and its output is left out.
        own = slice(start, start + sizes[self.rank]) if sizes[self.rank] else slice(0, 1)
        return self.gather(forward(batch.part(own)), sizes)

    def gather(self, own: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows of all processes in order: the first sizes[r] of what process r gives, with the gradient of the own."""
        if self.count == 1:
            return own
        own, largest = own[: sizes[self.rank]], max(sizes)
        padded = own.detach().new_zeros(largest, *own.shape[1:])
        padded[: len(own)] = own.detach()
        everyone = self.accelerator.gather(padded)
        parts = [everyone[rank * largest : rank * largest + size] for rank, size in enumerate(sizes)]
        parts[self.rank] = own
        return torch.cat(parts)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient, summed over processes, of a loss of the whole or of this process's share."""
        # Distributed wrappers average gradients over processes; the sum is wanted.
        self.accelerator.backward(loss * self.count)

    def accumulating(self, module: Any, last: bool) -> contextlib.AbstractContextManager[None]:
        """Within this context gradients travel only for the last part of a step."""
        if last:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = self.accelerator.no_sync(module)
        return context

    def total(self, value: float) -> float:
        """Sum of a number over processes."""
        if self.count == 1:
            return value
        dtype = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        own = torch.tensor(value, dtype=dtype, device=self.accelerator.device)
        return float(self.accelerator.reduce(own, reduction="sum"))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return self.total(float(flag)) > 0

    def wait(self) -> None:
        """Return when every process is here."""
        self.accelerator.wait_for_everyone()

    def first_on_each_machine(self) -> contextlib.AbstractContextManager[None]:
        """Within this context one process of a machine goes before the others, which find what it fetched."""
        context: contextlib.AbstractContextManager[None] = self.accelerator.local_main_process_first()
        return context

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Let process 0 alone do something; every process gets what it returned, as JSON.

        Raises:
            UnderstudyError: in the other processes, of the class and with the message that process 0 raises.
        """
        if self.count == 1:
            return work()
        try:
            answer = {"value": work()} if self.is_main else {}
        except BaseException as error:
            self._tell({"error": type(error).__name__, "message": str(error)})
            raise
        answer = self._tell(answer)
        if "error" in answer:
            kind = getattr(errors, answer["error"], errors.UnderstudyError)
            raise kind(answer["message"])
        return answer["value"]

    def from_main(self, checkpoint: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """The checkpoint that process 0 finds, in every process, whether or not they share a disk.

        Raises:
            UnderstudyError: in the other processes, as `on_main` says, where process 0 cannot read it.
        """
        if self.count == 1:
            return checkpoint()
        found: list[Checkpoint] = []

        def described() -> dict[str, Any] | None:
            if (here := checkpoint()) is None:
                return None
            found.append(here)
            likes = {name: [str(v.dtype).removeprefix("torch."), list(v.shape)] for name, v in here.tensors.items()}
            return {"step": here.step, "tensors": likes, "state": here.state}

        told = self.on_main(described)
        if told is None:
            return None
        tensors = found[0].tensors if found else {}
        received = {name: self._tensor(tensors.get(name), *like) for name, like in told["tensors"].items()}
        return Checkpoint(int(told["step"]), received, told["state"])

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors whose shards are spread over processes, each as a whole in every process."""
        return {name: whole_tensor(value) for name, value in tensors.items()}

    def _tell(self, message: Any) -> Any:
        """Return the message of process 0."""
        data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8).to(self.accelerator.device)
        size = torch.tensor(len(data), device=self.accelerator.device)
        torch.distributed.broadcast(size, src=0)
        if not self.is_main:
            data = data.new_empty(int(size))
        torch.distributed.broadcast(data, src=0)
        return message if self.is_main else json.loads(data.cpu().numpy().tobytes())

    def _tensor(self, value: Tensor | None, dtype: str, shape: list[int]) -> Tensor:
        if value is None:
            value = torch.empty(shape, dtype=getattr(torch, dtype), device=self.accelerator.device)
        if value.numel():
            torch.distributed.broadcast(value.contiguous().reshape(-1).view(torch.uint8), src=0)
        return value
