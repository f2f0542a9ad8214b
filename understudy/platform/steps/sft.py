"""Step sft: demonstrations and a base model in, a warm-started policy out; again, longer, as a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from understudy.config import ModelConfig, SftConfig, section_sha256, validate
from understudy.platform.context import StepContext, step_context
from understudy.platform.launch import launched
from understudy.platform.steps.training import (
    account_for_skipped,
    create_loop,
    fetch,
    join_processes,
    lineage_of,
    load_demonstrations,
    publish,
    refuse_sharded_adapters,
    store_policy,
)
from understudy.records import DatasetRef, PolicyRef

if TYPE_CHECKING:
    from understudy.data.demonstrations import Demonstration
    from understudy.models.language_model import LanguageModel
    from understudy.training.processes import Processes


def run(
    config: Mapping[str, Any], dataset: DatasetRef, start: PolicyRef | None = None, compute_of: PolicyRef | None = None
) -> PolicyRef:
    """Train on the demonstrations by `config["sft"]`; return the stored policy's record.

    Args:
        config: seed, code_sha256, model, sft, and for the baseline `step: sft_longer`, which sees all demonstrations.
        dataset: the dataset version.
        start: go on from this policy instead of from the base model.
        compute_of: stop after the compute that this policy used, in token passes.
    """
    inputs = {"dataset": dataset, "start": start, "compute_of": compute_of}
    if (elsewhere := launched("sft", config, inputs, [PolicyRef])) is not None:
        return cast(PolicyRef, elsewhere[0])
    with step_context("sft", config) as context:
        model, sft = validate(ModelConfig, config["model"], "model"), validate(SftConfig, config["sft"], "sft")
        stage, parent = str(config.get("step", "sft")), start.sha256 if start else ""
        token_passes = compute_of.compute_token_passes if compute_of else None
        lineage = lineage_of(config, dataset.md5, parent, str(token_passes))
        processes = join_processes(context, model.precision)
        refuse_sharded_adapters(processes, {"model.lora": model.lora is not None})
        train, validation, test = load_demonstrations(
            context, dataset, "train", "validation", "test", processes=processes
        )
        from understudy.training.examples import encode
        from understudy.training.sft import train_sft

        policy, base = _first_policy(context, processes, model, train, start)
        shown = _shown(context, train, stage, sft.withheld_fraction)
        encoded, held_out = encode(policy, shown), encode(policy, validation)
        skipped = account_for_skipped(context, "train", encoded.skipped, len(shown))
        skipped += account_for_skipped(context, "validation", held_out.skipped, len(validation))
        # Only measured: what align or evaluation would refuse must not cost a training.
        seen = {row.id for row in shown}
        for others in (test, [row for row in train if row.id not in seen]):
            encode(policy, others)
        if sft.keep == "last":
            context.note("The last weights are kept, not those of the best validation NLL: sft.keep is last.")
        loop = create_loop(context, processes, lineage)
        with context.working():
            result = train_sft(policy, encoded.examples, held_out.examples, sft, context.seed, loop, token_passes)
        stored = store_policy(context, policy, loop, skipped)
        record = PolicyRef(
            uri=stored.uri,
            sha256=stored.sha256,
            stage=stage,
            dataset_md5=dataset.md5,
            parent_sha256=start.sha256 if start else None,
            config_sha256=section_sha256(dict(config)),
            code_sha256=str(config["code_sha256"]),
            base=base,
            train_seconds=round(result.train_seconds, 2),
            compute_token_passes=result.compute_token_passes,
        )
        nlls = {"best_validation_nll": result.best_validation_nll, "kept_validation_nll": result.kept_validation_nll}
        context.tracker.log(result.num_steps, nlls)
        context.finish(record)
        return record


def _shown(
    context: StepContext, train: Sequence[Demonstration], stage: str, withheld_fraction: float
) -> Sequence[Demonstration]:
    """Return the training rows that this stage sees."""
    from understudy.data.withholding import for_warm_start

    # Longer SFT is what alignment is compared with: all that alignment may see, it sees.
    if stage == "sft_longer" or withheld_fraction == 0:
        return train
    shown = for_warm_start(train, withheld_fraction)
    context.note(f"SFT sees {len(shown)} of {len(train)} training demonstrations; the others are withheld.")
    return shown


def _first_policy(
    context: StepContext,
    processes: Processes,
    model: ModelConfig,
    train: Sequence[Demonstration],
    start: PolicyRef | None,
) -> tuple[LanguageModel, str]:
    """The policy that training starts from, and where its untrained base can be loaded from.

    A tokenizer of our own is made from all training rows, withheld ones too: the base is the same at any fraction.
    """
    from understudy.models.loading import create_policy, load_policy, with_lora

    if start is not None:
        policy = load_policy(fetch(context, processes, start))
        if model.lora is not None:
            policy = with_lora(policy, model.lora, context.seed)
        return policy, start.base
    policy = create_policy(model, _texts(train), context.seed)
    if model.init == "pretrained":
        assert model.path is not None
        return policy, model.path
    return policy, publish(context, processes, "base", policy.save).uri


def _texts(train: Sequence[Demonstration]) -> Iterator[str]:
    for row in train:
        yield from (message["content"] for message in row.messages)
        yield row.response
