"""How much memory an align step needs, by a formula: before a run, and against what was measured.

One process on a CPU, float32 weights, the policy's update by policy gradient; docs/speed.md has measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from understudy.models.architecture import FAMILIES, is_plain_config
from understudy.models.portions import WHOLE_LOGITS, cpu_rows

FLOAT = 4
# Aligned blocks that are freed leave room that the next ones of their size do not fit into: a tenth to three tenths of
# what was asked for, of which the formula takes the middle.
_UNUSED = 0.2


class NoFormula(KeyError):
    """The formula does not hold for a model, because its forward pass keeps more: padding, experts, whole logits."""


@dataclass(frozen=True)
class ModelShape:
    """Architecture of a decoder of the Llama family; widths in numbers, not bytes.

    Queries and keys of some have norms of their own (`norms_heads`).
    """

    parameters: int
    hidden: int
    intermediate: int
    layers: int
    query_width: int
    key_width: int
    vocabulary: int
    norms_heads: bool = False

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """Read it from a Hugging Face model."""
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return replace(cls.of_config(model.config.to_dict()), parameters=parameters)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read it from the config.json of a model; its parameters are counted but for norms and biases.

        Raises:
            NoFormula: the config is of a family that is not read packed.
            KeyError: the config lacks its type or a width.
        """
        family, context_tokens = config["model_type"], config.get("max_position_embeddings") or 0
        if not is_plain_config(SimpleNamespace(**config), context_tokens):
            raise NoFormula(
                f"the formula holds for {', '.join(sorted(FAMILIES))} with a SiLU MLP, attention over the whole "
                f"context and no dropout in it, not for this policy of type {family!r}"
            )
        hidden, intermediate, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        layers, vocabulary = config["num_hidden_layers"], config["vocab_size"]
        head = config.get("head_dim") or hidden // heads
        query_width, key_width = head * heads, head * (config.get("num_key_value_heads") or heads)
        layer = hidden * (2 * query_width + 2 * key_width + 3 * intermediate)
        embeddings = 1 if config.get("tie_word_embeddings") else 2
        parameters = layers * layer + embeddings * vocabulary * hidden
        norms_heads = config.get("model_type") == "qwen3"
        return cls(parameters, hidden, intermediate, layers, query_width, key_width, vocabulary, norms_heads)


@dataclass(frozen=True)
class StepShape:
    """One align step: prompts, responses to each, and their greatest lengths in tokens."""

    prompts: int
    responses_per_prompt: int
    prompt_tokens: int
    response_tokens: int
    micro_batch_tokens: int = 8192
    discriminator_pairs: int = 0  # of all updates of a round; read with a shared trunk

    @property
    def rows(self) -> int:
        """Responses of a step."""
        return self.prompts * self.responses_per_prompt

    @property
    def micro_rows(self) -> int:
        """Responses that go through the networks at once."""
        return min(self.rows, max(1, self.micro_batch_tokens // (self.prompt_tokens + self.response_tokens)))


def align_bytes(model: ModelShape, step: StepShape, shared_trunk: bool = False) -> dict[str, int]:
    """Bytes of an align step by what they are for; "peak" is what the process takes for its worst moment.

    Args:
        model: the policy.
        step: the work.
        shared_trunk: the discriminator reads the reference (`align.discriminator.init: shared_trunk`); its own reader
            is small and left out. Else it is a third network as large as the policy.
    """
    copies, trained = (2, 1) if shared_trunk else (3, 2)
    weights = copies * FLOAT * model.parameters
    # Two moments for what is trained, and the gradient of one of them.
    optimizers = 2 * trained * FLOAT * model.parameters
    gradients = FLOAT * model.parameters
    # Hidden states of the samples and of both sides of each pair, at most, for the round.
    sequences = step.rows + 2 * step.discriminator_pairs
    seen = FLOAT * sequences * (step.response_tokens + 1) * (model.hidden + 1) if shared_trunk else 0
    update = gradients + seen + _activations(model, step) + _logits(model, step)
    sampling = FLOAT * model.parameters + _cache(model, step) + 3 * 2 * FLOAT * step.rows * model.vocabulary
    return {
        "weights": weights,
        "optimizers": optimizers,
        "update": update,
        "sampling": sampling,
        "peak": round((1 + _UNUSED) * (weights + optimizers + max(update, sampling))),
    }


def _activations(model: ModelShape, step: StepShape) -> int:
    """What a forward pass keeps for the backward pass, and what that makes of one layer."""
    rows = step.micro_rows
    prompts = max(1, -(-rows // step.responses_per_prompt))
    tokens = prompts * step.prompt_tokens + rows * step.response_tokens
    seen = rows * (step.prompt_tokens + step.response_tokens)
    # A layer keeps: the unit vectors and results of two norms, the gathered queries, the context before and after it is
    # put back, four tensors of the gated MLP.
    token = 4 * model.hidden + 3 * model.query_width + 4 * model.intermediate
    if model.norms_heads:  # their unit vectors
        token += model.query_width + model.key_width
    gathered = seen * 2 * model.key_width
    # Gradients of three tensors of the MLP and of the hidden states before and after it.
    gradients = tokens * (3 * model.intermediate + 2 * model.hidden)
    return FLOAT * (model.layers * (tokens * token + gathered) + gradients)


def _logits(model: ModelShape, step: StepShape) -> int:
    """Logits and log-softmax of a portion, and one of the two of all where that is kept for the backward pass."""
    rows = step.micro_rows * step.response_tokens
    portion = min(rows, cpu_rows(model.vocabulary)) * model.vocabulary
    whole = rows * model.vocabulary
    return FLOAT * (2 * portion + (whole if whole <= WHOLE_LOGITS else model.vocabulary * model.hidden))


def _cache(model: ModelShape, step: StepShape) -> int:
    """Keys and values of all rows."""
    return 2 * FLOAT * model.layers * step.rows * (step.prompt_tokens + step.response_tokens) * model.key_width
