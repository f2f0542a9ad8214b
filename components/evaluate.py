"""Step: measure the policies on the test split."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def evaluate(
    config: dict,
    dataset: Input[Dataset],
    sft: Input[Model],
    aligned: Input[Model],
    sft_longer: Input[Model],
    discriminator: Input[Model],
    report: Output[HTML],
) -> None:
    """Score base, SFT, aligned and longer SFT by every metric and judge, and write the report."""
    from understudy.platform.steps import evaluate as step
    from understudy.platform.steps import from_kfp, pack, unpack
    from understudy.records import DatasetRef, DiscriminatorRef, PolicyRef

    artifacts = {"sft": sft, "aligned": aligned, "sft_longer": sft_longer}
    policies = {name: unpack(artifact, PolicyRef) for name, artifact in artifacts.items()}
    judge = unpack(discriminator, DiscriminatorRef)
    pack(report, step.run(from_kfp(config), unpack(dataset, DatasetRef), policies, judge))
