"""Step align: the SFT policy in, the aligned policy and its discriminator out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from understudy.config import AlignConfig, ModelConfig, section_sha256, validate
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
    whole_weights,
)
from understudy.records import DatasetRef, DiscriminatorRef, PolicyRef

if TYPE_CHECKING:
    from understudy.platform.storage import Stored
    from understudy.training.processes import Processes
    from understudy.training.state import Models


def run(config: Mapping[str, Any], dataset: DatasetRef, sft: PolicyRef) -> tuple[PolicyRef, DiscriminatorRef]:
    """Align the SFT policy to the demonstrations by `config["align"]`; return both records.

    Args:
        config: seed, code_sha256, model, align and, where align.demonstrations is withheld, `withheld_fraction` of sft.
        dataset: the dataset version.
        sft: the policy to start from.
    """
    elsewhere = launched("align", config, {"dataset": dataset, "sft": sft}, [PolicyRef, DiscriminatorRef])
    if elsewhere is not None:
        return cast(tuple[PolicyRef, DiscriminatorRef], elsewhere)
    with step_context("align", config) as context:
        model = validate(ModelConfig, config["model"], "model")
        settings = validate(AlignConfig, config["align"], "align")
        lineage = lineage_of(config, dataset.md5, sft.sha256)
        processes = join_processes(context, model.precision)
        shared = settings.discriminator.init == "shared_lora"
        refuse_sharded_adapters(
            processes, {"model.lora": model.lora is not None, "align.discriminator.init: shared_lora": shared}
        )
        train, validation = load_demonstrations(context, dataset, "train", "validation", processes=processes)
        from understudy.data.withholding import for_alignment
        from understudy.training.adversarial import align
        from understudy.training.examples import encode, too_little_room

        fraction = config["withheld_fraction"] if settings.demonstrations == "withheld" else 0.0
        rows = for_alignment(train, settings.demonstrations, fraction)
        loop = create_loop(context, processes, lineage)
        models = _models(context, processes, model, settings, sft)
        encoded, held_out = encode(models.policy, rows), encode(models.policy, validation)
        asked = "align.rollout.max_response_tokens", settings.rollout.max_response_tokens
        if short := too_little_room(models.policy, encoded.examples + held_out.examples, *asked):
            context.note(f"Warning: {short}.")
        with context.working():
            result = align(models, encoded.examples, held_out.examples, settings, context.seed, loop)
        if result.stopped_by is not None:
            context.note(f"Alignment was stopped by health gate {result.stopped_by}")
        if result.policy_held_rounds:
            context.note(
                f"The policy was held in {result.policy_held_rounds} of {settings.num_rounds} rounds, because the "
                f"discriminator's held-out AUC was below align.min_held_out_auc {settings.min_held_out_auc:g}."
            )
        skipped = account_for_skipped(context, "train", encoded.skipped + result.skipped, len(rows))
        left_out = held_out.skipped + result.held_out_skipped
        skipped += account_for_skipped(context, "validation", left_out, len(validation))
        stored = store_policy(context, models.policy, loop, skipped)
        policy = PolicyRef(
            uri=stored.uri,
            sha256=stored.sha256,
            stage="aligned",
            dataset_md5=dataset.md5,
            parent_sha256=sft.sha256,
            config_sha256=section_sha256(dict(config)),
            code_sha256=str(config["code_sha256"]),
            base=sft.base,
            train_seconds=round(result.train_seconds, 2),
            compute_token_passes=result.compute_token_passes,
            stopped_by=result.stopped_by,
        )
        stored = _store_discriminator(context, processes, models, settings)
        discriminator = DiscriminatorRef(stored.uri, stored.sha256, dataset.md5, policy.sha256, result.held_out_auc)
        context.finish(policy)
        return policy, discriminator


def _models(
    context: StepContext, processes: Processes, model: ModelConfig, settings: AlignConfig, sft: PolicyRef
) -> Models:
    """Policy, frozen reference and discriminator, all from the SFT weights; shared where adapters allow it."""
    import torch

    from understudy.models.discriminator import create_discriminator
    from understudy.models.loading import load_policy, with_lora
    from understudy.training.adversarial import num_discriminator_outputs
    from understudy.training.state import Models

    folder = fetch(context, processes, sft)
    policy = load_policy(folder)
    if model.lora is not None:
        policy = with_lora(policy, model.lora, context.seed)
    # With adapters the policy without them is the reference, unless the discriminator adds its own to it.
    own_adapters = settings.discriminator.init == "shared_lora"
    reference = policy if model.lora is not None and not own_adapters else load_policy(folder)
    if reference is not policy:
        reference.model.requires_grad_(False)
    torch.manual_seed(context.seed)
    discriminator = create_discriminator(
        settings.discriminator, num_discriminator_outputs(settings), reference, lambda: load_policy(folder)
    )
    return Models(policy, reference, discriminator)


def _store_discriminator(context: StepContext, processes: Processes, models: Models, settings: AlignConfig) -> Stored:
    """Store it with the settings that it was trained by, which the method may have set, not the params."""
    from understudy.training.methods import composed

    trained_by, _ = composed(settings)
    description = {
        "method": trained_by.method,
        "divergence": trained_by.divergence,
        "level": trained_by.level,
        "loss": trained_by.discriminator.loss,
        "form": trained_by.discriminator.form,
    }
    weights = whole_weights(processes, models.discriminator)
    return publish(
        context, processes, "discriminator", lambda folder: models.discriminator.save(folder, description, weights)
    )
