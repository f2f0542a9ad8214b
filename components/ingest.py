"""Step: demonstrations in, one dataset version out."""

from kfp import dsl
from kfp.dsl import Dataset, Output, OutputPath

from components import STEPS_IMAGE


@dsl.component(base_image=STEPS_IMAGE, install_kfp_package=False)
def ingest(
    config: dict,
    preflight: str,
    dataset: Output[Dataset],
    dataset_record: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Read, validate, deduplicate, split and version the demonstrations."""
    from understudy.platform.steps import from_kfp, pack
    from understudy.platform.steps import ingest as step

    pack(dataset, dataset_record, step.run(from_kfp(config)))
