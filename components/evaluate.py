"""Step: measure the policies on the test split."""

from kfp import dsl
from kfp.dsl import HTML, Output, OutputPath

from components import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def evaluate(
    config: dict,
    dataset: str,
    sft: str,
    aligned: str,
    sft_longer: str,
    discriminator: str,
    champion: str,
    report: Output[HTML],
    report_record: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Score base, SFT, aligned, longer SFT and the champion by every metric and judge, and write the report."""
    from understudy.platform.steps import evaluate as step
    from understudy.platform.steps import from_kfp, pack, unpack
    from understudy.records import DatasetRef, DiscriminatorRef, PolicyRef

    records = {"sft": sft, "aligned": aligned, "sft_longer": sft_longer, "champion": champion}
    policies = {name: unpack(text, PolicyRef) for name, text in records.items() if text}
    judge = unpack(discriminator, DiscriminatorRef)
    scored = step.run(from_kfp(config), unpack(dataset, DatasetRef), policies, judge)
    pack(report, report_record, scored, page="report.html")
