"""The gradient of one loss of many sequences, with the activations of some of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from understudy.training.processes import Processes


def backward_by_parts(
    reads: Sequence[Callable[[], Tensor]], loss_of: Callable[[list[Tensor]], Tensor], processes: Processes, module: Any
) -> Tensor:
    """Accumulate the gradient of `loss_of` all outputs together; returns the loss (gradient caching, Gao et al. 2021).

    The outputs are read first, without activations; each part is then read once more and given the loss's gradient by
    its output. So a part costs a forward pass more than if all were held at once.

    Args:
        reads: each runs the network on one part; called again it must give the same, dropout included.
        loss_of: a scalar of the outputs, in order; asked once.
        processes: who runs which rows.
        module: the network as accelerate wraps it.
    """
    with torch.no_grad():
        outputs = [read() for read in reads]
    for output in outputs:
        output.requires_grad_()
    loss = loss_of(outputs)
    for index, gradient in enumerate(torch.autograd.grad(loss, outputs)):
        with processes.accumulating(module, last=index + 1 == len(reads)):
            processes.backward((reads[index]() * gradient).sum())
    return loss.detach()
