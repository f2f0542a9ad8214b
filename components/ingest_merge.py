"""Step: all parts of the source in, one dataset version out."""

from kfp import dsl
from kfp.dsl import Dataset, Output, OutputPath

from components import STEPS_IMAGE


@dsl.component(base_image=STEPS_IMAGE, install_kfp_package=False)
def ingest_merge(
    config: dict,
    shards: list,
    dataset: Output[Dataset],
    dataset_record: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Join, deduplicate, split and version what the shards validated."""
    from understudy.platform.steps import from_kfp, ingest_shards, pack

    pack(dataset, dataset_record, ingest_shards.run_merge(from_kfp(config), shards))
