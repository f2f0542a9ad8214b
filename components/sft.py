"""Step: supervised fine-tuning, from the base model or on from a policy."""

from kfp import dsl
from kfp.dsl import Model, Output, OutputPath

from components import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def sft(
    config: dict,
    dataset: str,
    policy: Output[Model],
    policy_record: OutputPath(str),  # type: ignore[valid-type]
    start: str = "",
    compute_of: str = "",
) -> None:
    """Warm start the policy; with `start`, go on from it with the compute that `compute_of` used."""
    from understudy.platform.steps import from_kfp, pack, unpack
    from understudy.platform.steps import sft as step
    from understudy.records import DatasetRef, PolicyRef

    given = [unpack(text, PolicyRef) if text else None for text in (start, compute_of)]
    pack(policy, policy_record, step.run(from_kfp(config), unpack(dataset, DatasetRef), *given))
