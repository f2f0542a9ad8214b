"""Step: adversarial alignment of the SFT policy."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def align(
    config: dict,
    dataset: Input[Dataset],
    sft: Input[Model],
    policy: Output[Model],
    discriminator: Output[Model],
) -> None:
    """Alternate discriminator and policy until the policy writes what the expert writes."""
    from understudy.platform.steps import align as step
    from understudy.platform.steps import from_kfp, pack, unpack
    from understudy.records import DatasetRef, PolicyRef

    aligned, judge = step.run(from_kfp(config), unpack(dataset, DatasetRef), unpack(sft, PolicyRef))
    pack(policy, aligned)
    pack(discriminator, judge)
