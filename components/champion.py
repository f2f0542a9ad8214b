"""Step: whom the challenger has to beat."""

from kfp import dsl

from components import STEPS_IMAGE


@dsl.component(base_image=STEPS_IMAGE, install_kfp_package=False)
def champion(config: dict, aligned: str, sft_longer: str) -> str:
    """Ask the registry for the champion once all training is done; "" where there is none to beat."""
    from understudy.platform.steps import champion as step
    from understudy.platform.steps import from_kfp, unpack
    from understudy.records import PolicyRef

    # `sft_longer` is only waited for: the later the registry is asked, the less its answer ages.
    unpack(sft_longer, PolicyRef)
    return step.run(from_kfp(config), unpack(aligned, PolicyRef))
