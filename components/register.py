"""Step: register the aligned model with its evidence."""

from kfp import dsl
from kfp.dsl import Model, Output, OutputPath

from components import STEPS_IMAGE


@dsl.component(base_image=STEPS_IMAGE, install_kfp_package=False)
def register(
    config: dict,
    dataset: str,
    policy: str,
    report: str,
    entry: Output[Model],
    entry_record: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Put the model into the registry under its alias, tagged with where it came from."""
    from understudy.platform.steps import from_kfp, pack, unpack
    from understudy.platform.steps import register as step
    from understudy.records import DatasetRef, EvaluationReport, PolicyRef

    records = unpack(policy, PolicyRef), unpack(report, EvaluationReport), unpack(dataset, DatasetRef)
    registered = step.run(from_kfp(config), *records)
    pack(entry, entry_record, registered, uri=step.receipt_uri(registered))
