"""A small pipeline of fast steps with the real frame: step contexts, artifacts with records, an exit handler."""

from kfp import dsl
from kfp.dsl import Model, Output, OutputPath


@dsl.component(base_image="fake/python", install_kfp_package=False)
def first(config: dict, model: Output[Model], model_record: OutputPath(str)):
    """Write content named by the config's value."""
    import fake_steps

    fake_steps.first(config, model, model_record)


@dsl.component(base_image="fake/python", install_kfp_package=False)
def second(config: dict, given: str, model: Output[Model], model_record: OutputPath(str)):
    """Read it; misbehave as the config asks."""
    import fake_steps

    fake_steps.second(config, given, model, model_record)


@dsl.component(base_image="fake/python", install_kfp_package=False)
def notify(config: dict, status: dsl.PipelineTaskFinalStatus):
    """The real exit handler."""
    from understudy.platform.steps import notify as step

    step.run(config, state=status.state, message=status.error_message)


@dsl.pipeline(name="fake")
def fake(first_config: dict, second_config: dict):
    """Two steps and the exit handler."""
    told = notify(config={}).set_caching_options(False)
    with dsl.ExitHandler(told, name="steps"):
        one = first(config=first_config)
        second(config=second_config, given=one.outputs["model_record"])
