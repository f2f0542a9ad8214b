"""The whole align step, ours through the production loop, TRL's through its RLOO and GRPO trainers."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.subjects import (
    as_text,
    create_model,
    create_policy,
    examples,
    num_parameters,
    random_ids,
    word_tokenizer,
)
from benchmarks.timing import Turn, Usage, compared, take_turns, usage
from understudy.config import AlignConfig, load_params

ROOT = Path(__file__).parents[1]
DISCRIMINATORS = ("shared_trunk", "sft")
# TRL's trainers as they come, and RLOO with what a user could change: our loop asks the C library for the former, too.
PEERS: dict[str, dict[str, Any]] = {
    "TRL RLOO": {"trainer": "rloo"},
    "TRL GRPO": {"trainer": "grpo"},
    "TRL RLOO with freed memory kept": {"trainer": "rloo", "keeps_memory": True},
    "TRL RLOO with a static cache": {"trainer": "rloo", "cache": "static"},
}


@dataclass(frozen=True)
class Work:
    """One align step: `prompts` prompts of `prompt_tokens`, `repeats` responses of `response_tokens` each."""

    size: str
    prompts: int = 4
    repeats: int = 8
    prompt_tokens: int = 32
    response_tokens: int = 64
    vocabulary: int = 2048
    divergence: str = "reverse_kl"
    discriminator: str = "shared_trunk"  # or "sft", a copy of the policy, all of it trained
    precision: str = "fp32"  # or "bf16", by autocast
    micro_batch_tokens: int | None = None  # None: as params.yaml says

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"align step {self.size}{'' if self.discriminator == 'shared_trunk' else ', trunk of its own'}"

    @property
    def sampled_tokens(self) -> int:
        """Tokens that a step samples."""
        return self.prompts * self.repeats * self.response_tokens

    @property
    def read_tokens(self) -> int:
        """Prompts and responses of a step, each prompt once."""
        return self.prompts * self.prompt_tokens + self.sampled_tokens

    def in_one_pass(self) -> Work:
        """The same with all rows in one micro-batch, as a TRL trainer takes them."""
        rows = self.prompts * self.repeats
        return replace(self, micro_batch_tokens=rows * (self.prompt_tokens + self.response_tokens))


def align_config(work: Work, rounds: int) -> AlignConfig:
    """The default params at this work: the discriminator sees, as they say, two pairs for every three samples."""
    batch_pairs = max(1, round(work.prompts * work.repeats / 3))
    settings: dict[str, Any] = {
        "num_rounds": rounds,
        "divergence": work.divergence,
        "discriminator.init": work.discriminator,
        "rollout.prompts_per_round": work.prompts,
        "rollout.responses_per_prompt": work.repeats,
        "rollout.max_response_tokens": work.response_tokens,
        "discriminator.warmup_rounds": 0,
        "discriminator.batch_pairs": batch_pairs,
        "held_out_every_rounds": 10_000,
        "checkpoint_every_rounds": 10_000,
    }
    if work.micro_batch_tokens is not None:
        settings["micro_batch_tokens"] = work.micro_batch_tokens
    return load_params(ROOT / "params.yaml", [f"align.{name}={value}" for name, value in settings.items()]).align


def discriminator_pairs(work: Work) -> int:
    """Pairs of all updates of a round."""
    settings = align_config(work, 1).discriminator
    return settings.updates_per_round * settings.batch_pairs


def formula_mib(work: Work, model: Any) -> float:
    """Peak memory of our step by `understudy.training.memory`, with this model as the policy."""
    from understudy.training.memory import ModelShape, StepShape, align_bytes

    step = StepShape(
        *(work.prompts, work.repeats, work.prompt_tokens, work.response_tokens),
        micro_batch_tokens=align_config(work, 1).micro_batch_tokens,
        discriminator_pairs=discriminator_pairs(work),
    )
    shared = work.discriminator == "shared_trunk"
    return align_bytes(ModelShape.of(model), step, shared_trunk=shared)["peak"] / 2**20


class OurStep:
    """Rounds of `align` without the first, which warms up."""

    def __init__(self, work: Work, device: str = "cpu") -> None:
        self.work, self.device = work, device

    def seconds(self, rounds: int) -> float:
        """Seconds of one round, the mean over `rounds`."""
        return self.run(rounds).mean_seconds()

    def run(self, rounds: int, clock: Clock | None = None) -> Clock:
        """A clock that has seen the ends of the first and of `rounds` more."""
        from understudy.models.discriminator import create_discriminator
        from understudy.training.adversarial import align, num_discriminator_outputs
        from understudy.training.state import Models

        work, config = self.work, align_config(self.work, rounds + 1)
        context = work.prompt_tokens + work.response_tokens + 1
        policy = create_policy(work.size, work.vocabulary, context)
        reference = copy.deepcopy(policy)
        reference.model.requires_grad_(False)
        outputs = num_discriminator_outputs(config)
        head = create_discriminator(config.discriminator, outputs, reference, lambda: policy)
        train = examples(4 * work.prompts, work.prompt_tokens, work.response_tokens, work.vocabulary)
        surroundings = Surroundings(self.device, work.precision, clock)
        align(Models(policy, reference, head), train, [], config, 7, surroundings.loop())
        return surroundings.clock


class PeerStep:
    """Steps of a TRL trainer without the first. The reward is a number without a model: TRL trains none."""

    def __init__(
        self, work: Work, trainer: str, device: str = "cpu", keeps_memory: bool = False, cache: str | None = None
    ) -> None:
        self.work, self.trainer, self.device = work, trainer, device
        self.keeps_memory, self.cache = keeps_memory, cache

    def seconds(self, rounds: int) -> float:
        """Seconds of one step, the mean over `rounds`."""
        return self.run(rounds).mean_seconds()

    def run(self, rounds: int) -> Clock:
        """A clock that has seen the ends of the first and of `rounds` more."""
        import trl
        from datasets import Dataset
        from transformers import TrainerCallback

        from understudy.training.allocator import keep_freed_memory

        work, settings = self.work, peer_settings(self.work, self.device)
        if self.keeps_memory:
            assert keep_freed_memory()
        if self.cache:
            settings["cache_implementation"] = self.cache
        clock = Clock()

        class Ticks(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *arguments: Any, **named: Any) -> None:
                clock.tick()

        texts = [as_text(row) for row in random_ids(4 * work.prompts, work.prompt_tokens, work.vocabulary, 1)]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            # A folder, because TRL loads the reference model by name.
            model = create_model(work.size, work.vocabulary, 2 * (work.prompt_tokens + work.response_tokens))
            model.save_pretrained(Path(folder) / "model")
            kinds = {"rloo": (trl.RLOOTrainer, trl.RLOOConfig), "grpo": (trl.GRPOTrainer, trl.GRPOConfig)}
            kind, arguments = kinds[self.trainer]
            trainer = kind(
                model=str(Path(folder) / "model"),
                reward_funcs=_reward,
                args=arguments(output_dir=folder, max_steps=rounds + 1, **settings),
                train_dataset=Dataset.from_dict({"prompt": texts}),
                processing_class=word_tokenizer(work.vocabulary),
                callbacks=[Ticks()],
            )
            trainer.train()
            # Equal work was done, or the comparison is none.
            lengths = trainer._metrics["train"].get("completions/mean_length") or _logged(trainer)
            assert lengths and all(length == work.response_tokens for length in lengths), lengths
        return clock


def peer_settings(work: Work, device: str) -> dict[str, Any]:
    """TRL's defaults, but our precision and batch, and nothing that only costs: no checkpointing of activations."""
    return {
        "per_device_train_batch_size": work.prompts * work.repeats,
        "num_generations": work.repeats,
        "max_completion_length": work.response_tokens,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "bf16": work.precision == "bf16",
        "use_cpu": device == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 5e-5,
        "model_init_kwargs": {"dtype": "float32"},
    }


def _logged(trainer: Any) -> list[float]:
    return [
        entry["completions/mean_length"] for entry in trainer.state.log_history if "completions/mean_length" in entry
    ]


def _reward(completions: list[str], **named: Any) -> list[float]:
    return [float(hash(text) % 7) for text in completions]


class Clock:
    """A tracker that only notes when rounds end."""

    def __init__(self) -> None:
        self.ends: list[Usage] = []

    def log(self, *arguments: Any) -> None:
        """Numbers of a round are nothing to a clock."""

    def progress(self, *arguments: Any) -> None:
        """Told after each round."""
        self.tick()

    def tick(self) -> None:
        """A round ended."""
        self.ends.append(usage())

    def turn(self, tokens: int) -> Turn:
        """All rounds without the first, of so many tokens each."""
        return Turn.between(self.ends[0], self.ends[-1], tokens * (len(self.ends) - 1))

    def mean_seconds(self) -> float:
        """Seconds a round, without the first."""
        # Only process 0 of several reports.
        return (self.ends[-1].seconds - self.ends[0].seconds) / (len(self.ends) - 1) if self.ends else 0.0


class Surroundings:
    """A loop that reports to a clock and keeps nothing."""

    def __init__(self, device: str = "cpu", precision: str = "fp32", clock: Clock | None = None) -> None:
        self.clock, self.device, self.precision = clock or Clock(), device, precision

    def loop(self) -> Any:
        """The loop."""
        from understudy.training.loop import Loop, create_accelerator

        return Loop(create_accelerator(self.precision, self.device), self.clock, _NoCheckpoints())  # type: ignore[arg-type]


class _NoCheckpoints:
    def latest(self, device: Any) -> None:
        return None

    def save(self, *arguments: Any) -> None:
        pass


def least_flops(work: Work, parameters: int, embedding: int, hidden: int) -> float:
    """Arithmetic that no implementation of our step can avoid: products with weights alone, prompts read once.

    Sampling and scoring by the reference are a forward pass over all prompts and responses, the policy's update a
    forward and a backward pass (three times as much). A discriminator of its own, which has no output layer over the
    vocabulary, scores them once and trains on pairs of an expert's and a sampled response to one prompt. One that
    shares the trunk has the reference read the expert's responses and the old samples, too, and its own network reads
    responses alone.
    """
    rows = work.prompts * work.repeats
    tokens = work.read_tokens
    settings = align_config(work, 1).discriminator
    pairs = discriminator_pairs(work)
    policy = 2 * parameters * (1 + 1 + 3) * tokens
    if work.discriminator == "sft":
        trained = pairs * (work.prompt_tokens + 2 * work.response_tokens)
        return policy + 2 * (parameters - embedding) * (tokens + 3 * trained)
    width = settings.reader_width or hidden
    reader = 2 * hidden * width + settings.reader_layers * 12 * width**2
    # Prompts of old samples, and the expert's responses to new and old prompts; with every prompt of the round asked.
    old = round(settings.replay_fraction * settings.batch_pairs) * settings.updates_per_round
    read = old * (work.prompt_tokens + 2 * work.response_tokens) + work.prompts * work.response_tokens
    trained = pairs * 2 * work.response_tokens
    return policy + 2 * parameters * read + 2 * reader * (rows * work.response_tokens + 3 * trained)


def turn_of(step: OurStep | PeerStep, rounds: int) -> Turn:
    """So many steps after the first."""
    return step.run(rounds).turn(step.work.sampled_tokens)


def measure(work: Work, rounds: int, repetitions: int) -> list[dict[str, Any]]:
    """Sampled tokens per second of whole steps: both discriminators and all peers take turns, a row for each pair."""
    model = create_model(work.size, work.vocabulary, 16)
    embedding = model.get_input_embeddings().weight
    works = {kind: replace(work, discriminator=kind) for kind in DISCRIMINATORS}
    steps: dict[str, OurStep | PeerStep] = {kind: OurStep(each) for kind, each in works.items()}
    steps |= {name: PeerStep(work, **settings) for name, settings in PEERS.items()}
    turns = take_turns({name: partial(turn_of, step, rounds) for name, step in steps.items()}, repetitions)
    rows = []
    for kind, each in works.items():
        least = least_flops(each, num_parameters(model), embedding.numel(), embedding.shape[1])
        for peer in PEERS:
            rows.append(
                {
                    "name": each.name,
                    "unit": "sampled tokens/s",
                    "peer_name": peer,
                    **compared({"ours": turns[kind], peer: turns[peer]}, peer),
                    "least": {"flops": least / work.sampled_tokens},
                }
            )
    return rows
