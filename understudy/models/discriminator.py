"""Which network tells expert from policy, and how it comes back from disk.

All kinds are called with a `TokenBatch` and give n outputs at each response token, shape (B, T, n):

- `ScalarHead`: a trunk of its own, all of it trained: a copy of the policy's, the reference's with adapters, or one of
  another size;
- `TrunkReader`: the frozen reference's hidden states, read by a small network;
- `NGramReader`: a table of the response's n-grams.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from understudy.config import DiscriminatorConfig
from understudy.models import ngram_reader, trunk_reader
from understudy.models.language_model import LanguageModel
from understudy.models.loading import create_backbone
from understudy.models.ngram_reader import NGramReader, load_ngram_reader
from understudy.models.scalar_head import ScalarHead, load_scalar_head
from understudy.models.trunk_reader import TrunkReader, load_trunk_reader

Discriminator = ScalarHead | TrunkReader | NGramReader


def create_discriminator(
    config: DiscriminatorConfig, num_outputs: int, reference: LanguageModel, fresh: Callable[[], LanguageModel]
) -> Discriminator:
    """The network that `discriminator.init` names; its random weights come from torch's global generator.

    Args:
        config: the `align.discriminator` section.
        num_outputs: n, as the objective needs.
        reference: the frozen SFT policy.
        fresh: loads the SFT policy once more.
    """
    if config.init == "shared_trunk":
        return TrunkReader(reference, num_outputs, config.reader_layers, config.reader_width, config.dropout)
    if config.init == "ngrams":
        shape = (num_outputs, config.ngram_orders, config.ngram_buckets)
        return NGramReader(*shape, config.dropout, config.ngram_lengths)
    if config.init == "shared_lora":
        return ScalarHead.shared_with(reference, config.lora_rank, num_outputs, config.dropout)
    if config.init == "own":
        assert config.own is not None
        return ScalarHead(create_backbone(config.own, reference), reference, num_outputs, config.dropout)
    return ScalarHead.copied_from(fresh(), num_outputs, config.dropout)


def load_discriminator(folder: Path, layout: LanguageModel) -> Discriminator:
    """Load what any kind saved.

    Args:
        folder: with description.json.
        layout: a policy with the tokenizer of the one that it was trained against, on the device to read on.

    Raises:
        IntegrityError: the weights do not fit the description.
    """
    described = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    if described.get("kind") == trunk_reader.KIND:
        return load_trunk_reader(folder, layout.device)
    if described.get("kind") == ngram_reader.KIND:
        return load_ngram_reader(folder)
    return load_scalar_head(folder, layout)
