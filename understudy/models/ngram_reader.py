"""A discriminator that counts: which n-grams of token ids the expert writes, and which the policy.

It knows neither the prompt nor what tokens mean. What a small policy gets wrong are often words and fields that no
expert ever wrote, and those it finds from a few hundred responses where a trained network of the policy's own kind
does not (docs/results.md, "Discriminators"). It costs one look-up a token and order, and an update of the whole table.

Shapes: B sequences, T response columns, K orders, n outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from understudy.models.language_model import TokenBatch
from understudy.models.scalar_head import dropped, load_weights, write_described

KIND = "ngrams"
# Outputs are so many times the mean weight: a table then learns at the rates that suit networks.
GAIN = 100.0
# A length's weight is learned of every response of about that length, and needs less.
LENGTH_GAIN = 10.0
_NUM_LENGTHS, _LENGTHS_PER_DOUBLING = 64, 5  # a bucket is 15% wide; the last begins at 5,793 tokens
_FACTOR, _PRIME, _MIX = 1_000_003, 2_147_483_647, 0x2C1B3C6D


class NGramReader(nn.Module):
    """A linear classifier over hashed n-grams of the response; its weights start at zero.

    The output at a response position is the mean weight of all n-grams that end there or before, so that neither long
    nor short responses are preferred as such. What stands before the response's first token is one and the same mark,
    so that how a response begins is an n-gram, too, and one shorter than an order is read as a whole.

    With `lengths` a weight of the number of tokens so far joins it. Without, a policy that grows shorter or longer than
    the expert is not told so.

    Args:
        num_outputs: n.
        orders: the smallest and the largest number of tokens of an n-gram.
        num_buckets: rows of the table that n-grams are hashed into.
        dropout: of n-grams, in training.
        lengths: whether it counts tokens, too.
    """

    # What sharding asks a model for: there are no layers to gather one at a time.
    _no_split_modules: list[str] = []  # noqa: RUF012

    def __init__(
        self, num_outputs: int, orders: tuple[int, int], num_buckets: int, dropout: float, lengths: bool = False
    ) -> None:
        super().__init__()
        self.orders = orders
        self.dropout = nn.Dropout(dropout)
        self.table = nn.Embedding(num_buckets, num_outputs)
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        nn.init.zeros_(self.table.weight)
        self.lengths = nn.Embedding(_NUM_LENGTHS, num_outputs) if lengths else None
        if self.lengths is not None:
            nn.init.zeros_(self.lengths.weight)

    def buckets(self, batch: TokenBatch) -> Tensor:
        """The bucket of the n-gram of each order that ends at each response token, shape (B, T, K)."""
        low, high = self.orders
        token_BT = batch.response_BT + 1  # 0 is the mark before the response
        hash_BT, found = torch.zeros_like(token_BT), []
        for order in range(1, high + 1):
            back_BT = nn.functional.pad(token_BT, (order - 1, 0))[:, : token_BT.shape[1]]
            hash_BT = (hash_BT * _FACTOR + back_BT) % _PRIME
            if order >= low:
                found.append(_mixed((hash_BT * _FACTOR + order) % _PRIME) % self.table.num_embeddings)
        return torch.stack(found, dim=-1)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Outputs at each response token, float32, shape (B, T, n)."""
        weight_BTKn = self.table(self.buckets(batch))
        mask_BT11 = batch.mask_BT[..., None, None].to(weight_BTKn.dtype)
        factor_BTK1 = dropped(self.dropout, torch.ones_like(weight_BTKn[..., :1]), batch)
        sum_BTn = (weight_BTKn * factor_BTK1 * mask_BT11).sum(dim=2).cumsum(dim=1)
        num_ngrams_BT1 = mask_BT11[..., 0].cumsum(dim=1).clamp(min=1) * weight_BTKn.shape[2]
        output_BTn = GAIN * sum_BTn / num_ngrams_BT1 + self.bias
        if self.lengths is not None:
            output_BTn = output_BTn + LENGTH_GAIN * self.lengths(length_buckets(batch.mask_BT))
        return cast(Tensor, output_BTn.float())

    def save(self, folder: Path, description: dict[str, Any], weights: Mapping[str, Tensor] | None = None) -> None:
        """Write ngrams.safetensors and description.json.

        Args:
            folder: to write to, created.
            description: what the outputs mean.
            weights: the whole weights by name, where this module holds only shards of them.
        """
        shape = {"num_outputs": len(self.bias), "orders": list(self.orders), "num_buckets": self.table.num_embeddings}
        described = {"kind": KIND, **shape, "lengths": self.lengths is not None, **description}
        write_described(folder, "ngrams.safetensors", dict(self.named_parameters()), described, weights)


def length_buckets(mask_BT: Tensor) -> Tensor:
    """The bucket of the number of response tokens so far, shape (B, T)."""
    number_BT = mask_BT.cumsum(dim=1).clamp(min=1).double()
    return (number_BT.log2() * _LENGTHS_PER_DOUBLING).round().long().clamp(max=_NUM_LENGTHS - 1)


def _mixed(hash_BT: Tensor) -> Tensor:
    """Bits put in disorder: without it, tokens a fixed distance apart share a bucket in every order."""
    hash_BT = (hash_BT ^ (hash_BT >> 15)) * _MIX % _PRIME
    return hash_BT ^ (hash_BT >> 12)


def load_ngram_reader(folder: Path) -> NGramReader:
    """Load what `save` wrote.

    Raises:
        IntegrityError: the weights do not fit the description.
    """
    described = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    low, high = described["orders"]
    shape = (described["num_outputs"], (low, high), described["num_buckets"])
    module = NGramReader(*shape, dropout=0.0, lengths=described["lengths"])
    load_weights(module, folder, "ngrams.safetensors", "description.json")
    return module
