"""The DAG on one page; the same pipeline runs on a laptop (kfp.local) and compiles for the cluster.

    preflight → ingest → sft → align → sft_longer → evaluate → register, then notify whatever happened

Each parameter is the whole config that one step reads, so that a changed param re-runs the first step
that reads it and what follows. `pipelines.arguments` fills them from the params.
"""

from kfp import dsl

from components.align import align
from components.evaluate import evaluate
from components.ingest import ingest
from components.notify import notify
from components.preflight import preflight
from components.register import register
from components.sft import sft


@dsl.pipeline(name="understudy-retrain", description="Align a language model from expert demonstrations alone.")
def retrain(
    preflight_config: dict,
    ingest_config: dict,
    sft_config: dict,
    align_config: dict,
    sft_longer_config: dict,
    evaluate_config: dict,
    register_config: dict,
    notify_config: dict,
) -> None:
    """Demonstrations in, a registered model with its evidence out."""
    told = notify(config=notify_config).set_caching_options(False)
    with dsl.ExitHandler(told, name="steps"):
        checked = preflight(config=preflight_config)
        data = ingest(config=ingest_config, preflight=checked.output).outputs["dataset"]
        warm = sft(config=sft_config, dataset=data).outputs["policy"]
        game = align(config=align_config, dataset=data, sft=warm).outputs
        longer = sft(config=sft_longer_config, dataset=data, start=warm, compute_of=game["policy"])
        longer.set_display_name("sft_longer")
        report = evaluate(
            config=evaluate_config,
            dataset=data,
            sft=warm,
            aligned=game["policy"],
            sft_longer=longer.outputs["policy"],
            discriminator=game["discriminator"],
        ).outputs["report"]
        register(config=register_config, dataset=data, policy=game["policy"], report=report)
