"""The DAG on one page; the same pipeline runs on a laptop (kfp.local) and compiles for the cluster.

    preflight → ingest → sft → align → sft_longer → champion → evaluate → register → promote, then notify in any case

Steps hand over records, small JSON texts that name content by digest; content goes from step to store to step
(docs/decisions/0007). Each parameter is the whole config that one step reads, so that a changed param re-runs the
first step that reads it and what follows; `pipelines.arguments` fills them from the params. `place` is called with
each step's name and task: compiling for a cluster gives it the settings of `platform:` (`pipelines.settings`), and a
laptop needs none. Step promote runs where `promotion.enabled` says so, else a person promotes.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.align import align
from components.champion import champion
from components.evaluate import evaluate
from components.ingest import ingest
from components.ingest_merge import ingest_merge
from components.ingest_shard import ingest_shard
from components.notify import notify
from components.preflight import preflight
from components.promote import promote
from components.register import register
from components.sft import sft

Place = Callable[[Any, Any], None]


def build(place: Place = lambda step, task: None, ingest_shards: int = 1) -> Any:
    """Return the pipeline; with `ingest_shards` above 1, so many pods read the source beside each other."""

    @dsl.pipeline(name="understudy-retrain", description="Align a language model from expert demonstrations alone.")
    def retrain(
        preflight_config: dict,
        ingest_config: dict,
        sft_config: dict,
        align_config: dict,
        sft_longer_config: dict,
        champion_config: dict,
        evaluate_config: dict,
        register_config: dict,
        notify_config: dict,
        promote_config: dict = {},  # noqa: B006 - kfp reads it
        promotion_enabled: bool = False,
    ) -> None:
        """Demonstrations in, a registered model with its evidence out."""
        told = notify(config=notify_config).set_caching_options(False)
        place("notify", told)
        with dsl.ExitHandler(told, name="steps"):
            checked = preflight(config=preflight_config)
            place("preflight", checked)
            dataset = ingested(ingest_config, checked.output, place, ingest_shards)
            warm = sft(config=sft_config, dataset=dataset)
            place("sft", warm)
            start = warm.outputs["policy_record"]
            game = align(config=align_config, dataset=dataset, sft=start)
            place("align", game)
            aligned = game.outputs["policy_record"]
            longer = sft(config=sft_longer_config, dataset=dataset, start=start, compute_of=aligned)
            place("sft_longer", longer.set_display_name("sft_longer"))
            to_beat = champion(config=champion_config, aligned=aligned, sft_longer=longer.outputs["policy_record"])
            place("champion", to_beat.set_caching_options(False))
            scored = evaluate(
                config=evaluate_config,
                dataset=dataset,
                sft=start,
                aligned=aligned,
                sft_longer=longer.outputs["policy_record"],
                discriminator=game.outputs["discriminator_record"],
                champion=to_beat.output,
            )
            place("evaluate", scored)
            report = scored.outputs["report_record"]
            registered = register(config=register_config, dataset=dataset, policy=aligned, report=report)
            place("register", registered)
            with dsl.If(promotion_enabled == True, name="promotion"):  # noqa: E712 - kfp overloads the operator
                decided = promote(config=promote_config, entry=registered.outputs["entry_record"])
                place("promote", decided.set_caching_options(False))

    return retrain


def ingested(config: Any, preflight: Any, place: Place, shards: int) -> Any:
    """Add step ingest, whole or fanned out, to the pipeline at hand; return the dataset's record."""
    if shards == 1:
        data = ingest(config=config, preflight=preflight)
    else:
        with dsl.ParallelFor(items=list(range(shards)), name="ingest-shards") as index:
            part = ingest_shard(config=config, preflight=preflight, index=index, count=shards)
            place("ingest", part)
        data = ingest_merge(config=config, shards=dsl.Collected(part.output))
    place("ingest", data)
    return data.outputs["dataset_record"]


retrain = build()
