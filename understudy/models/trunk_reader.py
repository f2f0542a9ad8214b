"""A discriminator that reads the frozen reference: its hidden states are made once, a small network judges them.

The reference scores every sample anyway, for the penalty. What it thought on the way tells expert from policy, too:
so no second trunk is kept, trained or run, and the discriminator cannot forget what the reference knows.

It is not told how likely a token was. Told, it learns within rounds that what surprises the policy is the expert's:
right of responses to new prompts, but then it prefers the policy's mistakes (docs/results.md, "Discriminators").

Shapes: B sequences, T response columns, H hidden width of the reference, D width, n outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from understudy.models.language_model import LanguageModel, Seen, TokenBatch
from understudy.models.scalar_head import dropped, load_weights, write_described

HEAD_WIDTH = 32
KIND = "shared_trunk"


class TrunkReader(nn.Module):
    """A small causal transformer over the reference's features of the response; its head starts at zero.

    The output at a response position has read the prompt and the response up to and including that token. There is
    no dropout inside, so that rows do not depend on which process runs them.

    Args:
        reference: frozen; not a part of this module, neither trained nor saved with it.
        num_outputs: n.
        num_layers: of the reader.
        width: D, a multiple of 32; None takes the reference's hidden width, rounded up.
        dropout: before the head.
    """

    # What sharding asks a model for: the layers that are gathered one at a time.
    _no_split_modules = ["_Layer"]

    def __init__(
        self, reference: LanguageModel, num_outputs: int, num_layers: int, width: int | None, dropout: float
    ) -> None:
        super().__init__()
        hidden = reference.hidden_size
        self.shape = {"num_layers": num_layers, "width": width or HEAD_WIDTH * -(-hidden // HEAD_WIDTH)}
        self.project = nn.Linear(2 * hidden, self.shape["width"])
        self.layers = nn.ModuleList(_Layer(self.shape["width"]) for _ in range(num_layers))
        self.norm = nn.LayerNorm(self.shape["width"])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.shape["width"], num_outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # In a list so that the reference is not registered as a part of this module.
        self._reference = [reference]

    def features(self, seen: Seen) -> Tensor:
        """What is read of each response token: the hidden state before it and the one after it, shape (B, T, 2H)."""
        return torch.cat([seen.hidden_BUH[:, :-1], seen.hidden_BUH[:, 1:]], dim=-1)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Outputs at each response token, float32, shape (B, T, n); reads the reference where the batch does not."""
        seen = batch.seen if batch.seen is not None else self._reference[0].read(batch)
        hidden_BTD = self.project(self.features(seen))
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD)
        hidden_BTD = self.norm(hidden_BTD).masked_fill(~batch.mask_BT[..., None], 0.0)
        return cast(Tensor, self.head(dropped(self.dropout, hidden_BTD, batch)).float())

    def save(self, folder: Path, description: dict[str, Any], weights: Mapping[str, Tensor] | None = None) -> None:
        """Write reader.safetensors and description.json, and the reference beside them, without which nothing is read.

        Args:
            folder: to write to, created.
            description: what the outputs mean.
            weights: the whole weights by name, where this module holds only shards of them.
        """
        described = {"kind": KIND, "num_outputs": self.head.out_features, **self.shape, **description}
        write_described(folder, "reader.safetensors", dict(self.named_parameters()), described, weights)
        self._reference[0].save_unadapted(folder / "reference")


class _Layer(nn.Module):
    """Norm, causal attention, norm, MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = width // HEAD_WIDTH
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Padding stands on the right, where a causal reader does not look."""
        num_rows, num_columns, width = hidden_BTD.shape
        parts = self.attend(self.attention_norm(hidden_BTD)).view(num_rows, num_columns, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        context = scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden_BTD = hidden_BTD + self.attended(context.transpose(1, 2).reshape(num_rows, num_columns, width))
        return cast(Tensor, hidden_BTD + self.down(gelu(self.up(self.mlp_norm(hidden_BTD)))))


def load_trunk_reader(folder: Path, device: torch.device) -> TrunkReader:
    """Load what `save` wrote, its reference on the given device.

    Raises:
        IntegrityError: the weights do not fit the description.
    """
    from understudy.models.loading import load_policy

    described = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    reference = load_policy(folder / "reference")
    reference.model.requires_grad_(False).to(device)
    num_outputs, num_layers, width = (described[name] for name in ("num_outputs", "num_layers", "width"))
    module = TrunkReader(reference, num_outputs, num_layers, width, dropout=0.0)
    load_weights(module, folder, "reader.safetensors", "description.json")
    return module
