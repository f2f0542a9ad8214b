"""Exit handler: write the run's outcome, and tell whoever asked to be told."""

from kfp import dsl
from kfp.dsl import PipelineTaskFinalStatus

from components import STEPS_IMAGE


@dsl.component(base_image=STEPS_IMAGE, install_kfp_package=False)
def notify(config: dict, status: PipelineTaskFinalStatus) -> None:
    """Write outcome.json and post it to the configured webhook, whatever the run's end."""
    from understudy.platform.steps import from_kfp
    from understudy.platform.steps import notify as step

    step.run(from_kfp(config), state=status.state, message=status.error_message)
