"""What is measured on: models of some sizes, a tokenizer of whole words, prompts and responses of exact lengths.

Words are single tokens, so that texts and ids have the same lengths for us and for a peer that wants text. The end
and padding tokens lie outside the model's vocabulary: no engine can sample the end, all decode equally many tokens,
and no peer pays for forbidding it. Where rows shall end, the end lies inside and its chance is the same everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from understudy.models.language_model import LanguageModel
from understudy.training.examples import Example


@dataclass(frozen=True)
class Size:
    """Architecture of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int | None = None  # None: as many as heads


SIZES = {
    "0.1M": Size(48, 128, 2, 2),
    "1M": Size(128, 352, 4, 4),
    "3M": Size(256, 688, 4, 4),
    "10M": Size(384, 1024, 6, 6),
    "135M": Size(576, 1536, 30, 9),
    "SmolLM2-135M": Size(576, 1536, 30, 9, 3),
}


def word_tokenizer(vocabulary: int, ends_inside: bool = False) -> Any:
    """A tokenizer whose words w0, w1, … are one token each; the end and padding tokens follow the vocabulary.

    With `ends_inside` they are its last two tokens instead, for training on responses that end.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end = vocabulary - 2 if ends_inside else vocabulary
    words = {f"w{index}": index for index in range(min(vocabulary, end))}
    tokenizer = Tokenizer(models.WordLevel(words | {"<end>": end, "<pad>": end + 1}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", clean_up_tokenization_spaces=False)


def create_model(size: str, vocabulary: int, context_tokens: int, seed: int = 0) -> Any:
    """A Llama with random weights, float32, evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SIZES[size]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads or shape.heads,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def create_policy(
    size: str, vocabulary: int = 2048, context_tokens: int = 256, ends_inside: bool = False
) -> LanguageModel:
    """The model as a policy."""
    tokenizer = word_tokenizer(vocabulary, ends_inside)
    policy = LanguageModel(create_model(size, vocabulary, context_tokens), tokenizer)
    # Padding is masked by position; its id only has to be one that the embedding holds.
    policy.pad_token_id = 0
    return policy


@torch.no_grad()
def make_end_likely(policy: LanguageModel, chance: float) -> None:
    """Give the end token this chance as the next at every position; all others have about equal ones.

    A Llama has no bias, so one is made: where the first number of all embeddings is large, that of a normed hidden
    state is the root of their width, whatever the layers add. What the end's number is larger by then adds to its logit
    alone.
    """
    embedding_VH = policy.model.get_input_embeddings().weight
    odds = chance / (1 - chance) * (embedding_VH.shape[0] - 1)
    embedding_VH[:, 0] = 128.0
    embedding_VH[policy.end_token_id, 0] += math.log(odds) / math.sqrt(embedding_VH.shape[1])


def num_parameters(model: Any) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def random_ids(rows: int, tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Rows of random word ids."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[list[int]] = torch.randint(0, vocabulary, (rows, tokens), generator=generator).tolist()
    return ids


def examples(rows: int, prompt_tokens: int, response_tokens: int, vocabulary: int, seed: int = 1) -> list[Example]:
    """Demonstrations of exact lengths."""
    ids = random_ids(rows, prompt_tokens + response_tokens, vocabulary, seed)
    return [Example(f"row-{index}", row[:prompt_tokens], row[prompt_tokens:]) for index, row in enumerate(ids)]


def as_text(ids: list[int]) -> str:
    """Words of the ids, which the tokenizer reads back as the same ids."""
    return " ".join(f"w{token}" for token in ids)
