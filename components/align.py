"""Step: adversarial alignment of the SFT policy."""

from kfp import dsl
from kfp.dsl import Model, Output, OutputPath

from components import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def align(
    config: dict,
    dataset: str,
    sft: str,
    policy: Output[Model],
    policy_record: OutputPath(str),  # type: ignore[valid-type]
    discriminator: Output[Model],
    discriminator_record: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Alternate discriminator and policy until the policy writes what the expert writes."""
    from understudy.platform.steps import align as step
    from understudy.platform.steps import from_kfp, pack, unpack
    from understudy.records import DatasetRef, PolicyRef

    aligned, judge = step.run(from_kfp(config), unpack(dataset, DatasetRef), unpack(sft, PolicyRef))
    pack(policy, policy_record, aligned)
    pack(discriminator, discriminator_record, judge)
