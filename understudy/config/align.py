"""Params of the alignment: rollouts, discriminator, methods and their schedule."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from understudy.config.health import HealthConfig
from understudy.config.sections import Section


class RolloutConfig(Section):
    """How responses are sampled from the policy during alignment."""

    prompts_per_round: int = Field(gt=0)
    responses_per_prompt: int = Field(ge=2)
    max_response_tokens: int = Field(gt=0)
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    engine: Literal["native", "transformers", "vllm"] = "native"
    server_url: str | None = None  # of a vLLM server; null with engine vllm: in the training process


class OwnTrunkConfig(Section):
    """Shape of a discriminator of its own size; it shares only the tokenizer with the policy."""

    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of twice num_heads {self.num_heads}; heads take "
                "equal, even widths"
            )
        return self


class DiscriminatorConfig(Section):
    """The network that tells expert from policy, and how it is trained."""

    loss: Literal["logistic", "bradley_terry", "bradley_terry_variance", "variational"]
    form: Literal["plain", "airl"]
    init: Literal["sft", "shared_lora", "shared_trunk", "own", "ngrams"]
    learning_rate: float = Field(gt=0, le=10)
    weight_decay: float = Field(ge=0)
    dropout: float = Field(ge=0, lt=1)
    label_smoothing: float = Field(ge=0, lt=0.5)
    lora_rank: int = Field(gt=0)  # read with init: shared_lora
    reader_layers: int = Field(ge=0)  # this and the next: read with init: shared_trunk
    reader_width: int | None = Field(gt=0, multiple_of=32)  # null: the policy's own hidden width
    own: OwnTrunkConfig | None  # read with init: own
    ngram_orders: tuple[Annotated[int, Field(ge=1, le=32)], Annotated[int, Field(ge=1, le=32)]]  # least and most tokens
    ngram_buckets: int = Field(ge=1024, le=2**24)
    ngram_lengths: bool  # this and the two before: read with init: ngrams
    warmup_rounds: int = Field(ge=0)  # before the first policy update
    warmup_updates_per_round: int = Field(gt=0)
    updates_per_round: int = Field(ge=0)  # 0 freezes it after the warm-up
    batch_pairs: int = Field(gt=0)
    replay_rounds: int = Field(ge=0)
    replay_fraction: float = Field(ge=0, lt=1)
    max_grad_norm: float = Field(gt=0)

    @model_validator(mode="after")
    def _own_has_a_shape(self) -> Self:
        if self.init == "own" and self.own is None:
            raise ValueError("init is own but discriminator.own is null; give its shape")
        return self

    @model_validator(mode="after")
    def _orders_rise(self) -> Self:
        low, high = self.ngram_orders
        if low > high:
            raise ValueError(f"ngram_orders go from {low} down to {high} tokens; give the smaller number first")
        return self


class PpoConfig(Section):
    """PPO-clip with a value head; read with policy_update: ppo and method: rlhf."""

    clip_range: float = Field(gt=0, lt=1)
    epochs: int = Field(gt=0)
    gae_lambda: float = Field(ge=0, le=1)
    value_learning_rate: float = Field(gt=0, le=10)


class SelfPlayConfig(Section):
    """The expert's response against the policy's own sample; read with method: selfplay."""

    loss: Literal["dpo", "ipo", "kto", "slic"]
    beta: float = Field(gt=0)
    updates_per_round: int = Field(gt=0)
    batch_pairs: int = Field(gt=0)


class AlignConfig(Section):
    """The alternating loop: which divergence, at which level, by which update."""

    method: Literal["adversarial", "selfplay", "iterative_sft", "rlhf"]
    divergence: str
    level: Literal["token", "sequence"]
    absorbing: bool
    discount: float = Field(gt=0, le=1)
    reward_clip: float = Field(gt=0)
    policy_update: Literal["rloo", "ppo"]
    ppo: PpoConfig
    selfplay: SelfPlayConfig
    demonstrations: Literal["all", "withheld"]  # withheld: those that sft.withheld_fraction keeps from SFT
    num_rounds: int = Field(gt=0)
    rollout: RolloutConfig
    discriminator: DiscriminatorConfig
    learning_rate: float = Field(gt=0, le=10)
    weight_decay: float = Field(ge=0)
    schedule: Literal["cosine", "constant"]
    warmup_fraction: float = Field(ge=0, lt=1)
    max_grad_norm: float = Field(gt=0)
    micro_batch_tokens: int = Field(gt=0)
    kl_coefficient_start: float = Field(ge=0)
    kl_coefficient_end: float = Field(ge=0)
    # Times the token-mean NLL, in nats, of expert responses; every policy update has the term (rlhf: PPO-ptx).
    sft_coefficient_start: float = Field(ge=0)
    sft_coefficient_end: float = Field(ge=0)
    held_out_every_rounds: int = Field(gt=0)
    # Measured then at the end of the warm-up, too; a held round counts, and trains the discriminator alone.
    min_held_out_auc: float | None = Field(ge=0.5, lt=1)
    checkpoint_every_rounds: int = Field(gt=0)
    health: HealthConfig

    @model_validator(mode="after")
    def _the_discriminator_learns(self) -> Self:
        # Self-play does not follow it, and may do without.
        if self.discriminator.warmup_rounds > 0 or self.method == "selfplay":
            return self
        if self.method == "rlhf":
            raise ValueError(
                "discriminator.warmup_rounds is 0, but method rlhf trains its reward model in the warm-up alone: "
                "every reward would be 0; set discriminator.warmup_rounds above 0"
            )
        if self.discriminator.updates_per_round == 0:
            raise ValueError(
                "discriminator.warmup_rounds and discriminator.updates_per_round are both 0, so that the discriminator "
                "never learns who the expert is and the policy follows nothing; set one of them above 0"
            )
        return self
