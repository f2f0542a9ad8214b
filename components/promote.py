"""Step: from challenger to champion, by the gate; only where `promotion.enabled` says so."""

from kfp import dsl
from kfp.dsl import Artifact, Output, OutputPath

from components import STEPS_IMAGE


@dsl.component(base_image=STEPS_IMAGE, install_kfp_package=False)
def promote(
    config: dict,
    entry: str,
    promotion: Output[Artifact],
    promotion_record: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Promote the registered version if the gate passes; a refusal by its numbers is a result, not a failure."""
    from understudy.platform.steps import from_kfp, pack, unpack
    from understudy.platform.steps import promote as step
    from understudy.records import RegistryEntry

    pack(promotion, promotion_record, step.run(from_kfp(config), unpack(entry, RegistryEntry)))
