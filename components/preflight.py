"""Step: find every problem before anything is computed."""

from kfp import dsl

from components import STEPS_IMAGE


@dsl.component(base_image=STEPS_IMAGE, install_kfp_package=False)
def preflight(config: dict) -> str:
    """Check params, source, services, disk, judges and models; the word it returns is an input of ingest."""
    from understudy.platform.steps import from_kfp
    from understudy.platform.steps import preflight as step

    return step.run(from_kfp(config))
