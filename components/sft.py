"""Step: supervised fine-tuning, from the base model or on from a policy."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def sft(
    config: dict,
    dataset: Input[Dataset],
    policy: Output[Model],
    start: Optional[Input[Model]] = None,  # noqa: UP045 - kfp reads this form
    compute_of: Optional[Input[Model]] = None,  # noqa: UP045
) -> None:
    """Warm start the policy; with `start`, go on from it with the compute that `compute_of` used."""
    from understudy.platform.steps import from_kfp, pack, unpack
    from understudy.platform.steps import sft as step
    from understudy.records import DatasetRef, PolicyRef

    given = [unpack(artifact, PolicyRef) if artifact else None for artifact in (start, compute_of)]
    pack(policy, step.run(from_kfp(config), unpack(dataset, DatasetRef), *given))
