"""The params of a run: frozen pydantic models, one section per concern, unknown keys refused.

What changes a reported number has no default here: `params.yaml` states it. Operational settings, which
change where things happen and not what comes out, have their default on the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from understudy.errors import ConfigError
from understudy.health_config import HealthConfig
from understudy.judge_config import BradleyTerryJudgeConfig, ChatJudgeConfig, JudgeConfig
from understudy.platform_config import LaunchSettings, PlatformConfig
from understudy.registry_config import PromotionConfig, RegistryConfig
from understudy.sections import Section, apply_override, read_yaml, section_sha256, validate

__all__ = [
    "BradleyTerryJudgeConfig",
    "ChatJudgeConfig",
    "HealthConfig",
    "JudgeConfig",
    "LaunchSettings",
    "Params",
    "PlatformConfig",
    "PromotionConfig",
    "RegistryConfig",
    "Section",
    "apply_override",
    "load_params",
    "section_sha256",
    "validate",
]


class SplitsConfig(Section):
    """Fractions of groups (not rows) held out, decided by a hash of the group."""

    validation: float = Field(ge=0, lt=1)
    test: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")
        return self


class DataConfig(Section):
    """Where the demonstrations are and which of them are accepted."""

    source: str = Field(min_length=1)
    max_prompt_chars: int = Field(gt=0)
    max_response_chars: int = Field(gt=0)
    max_bad_fraction: float = Field(ge=0, le=1)
    near_duplicate_threshold: float | None = Field(gt=0, le=1)
    splits: SplitsConfig
    unicode_form: Literal["keep", "NFC"]


class ScratchConfig(Section):
    """Shape of a from-scratch Llama-style policy and of its tokenizer."""

    vocab_size: int = Field(ge=259)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    context_tokens: int = Field(gt=8)


class LoraConfig(Section):
    """Low-rank adapters (peft) instead of full fine-tuning."""

    rank: int = Field(gt=0)
    alpha: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)  # in SFT alone; alignment trains the log-probabilities that it samples with
    target_modules: tuple[str, ...] | Literal["all-linear"]


class ModelConfig(Section):
    """The policy's origin: a new small model, or any Hugging Face causal LM folder or name."""

    init: Literal["scratch", "pretrained"]
    scratch: ScratchConfig | None
    path: str | None
    gguf_file: str | None
    revision: str | None
    lora: LoraConfig | None
    precision: Literal["fp32", "bf16"]  # no fp16, which needs a loss scale: docs/decisions/0013

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.init == "scratch" and self.scratch is None:
            raise ValueError("init is scratch but model.scratch is null; give its shape")
        if self.init == "pretrained" and not self.path:
            raise ValueError("init is pretrained but model.path is null; name a folder or a model")
        return self


class SftConfig(Section):
    """Supervised warm start; the objective is one of Eq 7, 12, 14."""

    objective: Literal["token_nll", "occupancy", "trajectory"]
    discount: float = Field(gt=0, le=1)
    absorbing: bool
    epochs: float = Field(gt=0)
    batch_tokens: int = Field(gt=0)
    micro_batches_per_step: int = Field(gt=0)  # over all processes, each of about batch_tokens
    learning_rate: float = Field(gt=0, le=10)
    weight_decay: float = Field(ge=0)
    label_smoothing: float = Field(ge=0, lt=1)
    schedule: Literal["cosine", "constant"]
    warmup_fraction: float = Field(ge=0, lt=1)
    max_grad_norm: float = Field(gt=0)
    evaluations_per_epoch: float = Field(gt=0)
    keep: Literal["best_nll", "last"]  # which weights: of the best validation NLL, or the last
    checkpoint_every_steps: int = Field(gt=0)
    withheld_fraction: float = Field(ge=0, lt=1)  # of training groups; the warm start alone leaves them out


class RolloutConfig(Section):
    """How responses are sampled from the policy during alignment."""

    prompts_per_round: int = Field(gt=0)
    responses_per_prompt: int = Field(ge=2)
    max_response_tokens: int = Field(gt=0)
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    # graph: native by replaying a CUDA graph, for Llama's family in fp32; not yet run on a GPU.
    engine: Literal["native", "graph", "transformers", "vllm"] = "native"
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
    ngram_buckets: int = Field(ge=1024, le=2**24)  # this and the line before: read with init: ngrams
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


class EvaluationConfig(Section):
    """What is measured on the test split."""

    max_prompts: int = Field(gt=0)
    max_response_tokens: int = Field(gt=0)
    temperatures: tuple[float, ...] = Field(min_length=1)  # searched on the validation split
    judges: tuple[JudgeConfig, ...]
    tuning_judge: str | None
    confidence: float = Field(gt=0.5, lt=1)
    samples_shown: int = Field(ge=0)

    @field_validator("temperatures")
    @classmethod
    def _temperatures_are_warm(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        cold = [temperature for temperature in temperatures if temperature <= 0]
        if cold:
            raise ValueError(
                f"{cold} cannot be sampled at; give numbers above 0. Greedy responses need none: every policy is also "
                "decoded greedily, as the decoding `greedy`"
            )
        return temperatures

    @model_validator(mode="after")
    def _tuning_judge_exists(self) -> Self:
        names = [judge.name for judge in self.judges]
        if len(set(names)) != len(names):
            raise ValueError(f"two judges share a name: {names}")
        if self.tuning_judge is not None and self.tuning_judge not in names:
            raise ValueError(f"tuning_judge {self.tuning_judge!r} is not among the judges {names}")
        return self


class TrackingConfig(Section):
    """MLflow; `uri` null means a sqlite store in the working directory."""

    uri: str | None = None
    experiment: str = "understudy"
    system_metrics: bool = True


class StorageConfig(Section):
    """Where content lives; `uri` null means a folder in the working directory, else s3://bucket/prefix."""

    uri: str | None = None
    endpoint_url: str | None = None
    dvc_remote: str | None = None


class NotifyConfig(Section):
    """Where the outcome is sent, if anywhere; the URL may hold a secret, so only its variable is named."""

    webhook_url_env: str | None = None
    timeout_seconds: float = Field(default=10.0, gt=0)


class RuntimeConfig(Section):
    """How this machine is used."""

    threads: int = Field(default=2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"


def disagreements(data: DataConfig, model: ModelConfig, sft: SftConfig, align: AlignConfig) -> Iterator[str]:
    """What no section sees alone: settings that contradict each other, each with the remedy."""
    if align.demonstrations == "withheld" and sft.withheld_fraction == 0:
        yield (
            "align.demonstrations is withheld but sft.withheld_fraction is 0, so that none are; set "
            "sft.withheld_fraction above 0, or align.demonstrations=all"
        )
    if align.min_held_out_auc is not None and align.method == "selfplay":
        yield (
            f"align.min_held_out_auc is {align.min_held_out_auc:g} but align.method selfplay does not follow the "
            "discriminator, and would be held as it nears the expert; set align.min_held_out_auc=null"
        )
    if align.min_held_out_auc is not None and data.splits.validation == 0:
        yield (
            f"align.min_held_out_auc is {align.min_held_out_auc:g} but data.splits.validation is 0, which leaves no "
            "row to measure the AUC on; set data.splits.validation above 0, or align.min_held_out_auc=null"
        )
    if align.rollout.engine == "graph" and (model.precision != "fp32" or model.lora is not None):
        adapters = "no adapters" if model.lora is None else "adapters"
        yield (
            f"align.rollout.engine is graph, which decodes in fp32 and without adapters, but model.precision is "
            f"{model.precision} with {adapters} (model.lora); set align.rollout.engine=native"
        )


class Params(Section):
    """A whole run."""

    seed: int = Field(ge=0)
    data: DataConfig
    model: ModelConfig
    sft: SftConfig
    align: AlignConfig
    evaluation: EvaluationConfig
    registry: RegistryConfig
    promotion: PromotionConfig = PromotionConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: StorageConfig = StorageConfig()
    notify: NotifyConfig = NotifyConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    platform: PlatformConfig = PlatformConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if problems := list(disagreements(self.data, self.model, self.sft, self.align)):
            raise ValueError("; ".join(problems))
        return self


def load_params(path: Path, overrides: Iterable[str] = (), presets: Iterable[Path] = ()) -> Params:
    """Read a params file, lay presets over it in order, then apply `a.b=c` overrides (values parsed as YAML).

    A preset is a params file with only the values that it changes; a list replaces a list.

    Raises:
        ConfigError: naming every problem at once.
    """
    data = _read_mapping(path, "Params file", "Run in the project's folder, or name one with --params FILE.")
    for preset in presets:
        data = _overlaid(data, _read_mapping(preset, "Preset", "pipelines/runs/ and examples/ hold some."))
    problems: list[str] = []
    for override in overrides:
        try:
            apply_override(data, override)
        except ConfigError as error:
            problems.append(str(error))
    return validate(Params, data, " + ".join(str(file) for file in (path, *presets)), problems)


def _read_mapping(path: Path, what: str, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{what} {str(path)!r} does not exist. {remedy}")
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}. Correct the line it names.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not a mapping of sections such as `data:` and `sft:`.")
    return data


def _overlaid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _overlaid(under[name], value) if isinstance(value, dict) and isinstance(under.get(name), dict) else value
        for name, value in over.items()
    }
    return under | both
