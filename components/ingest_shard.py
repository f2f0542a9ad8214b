"""Step: one part of the source's files, validated; many of these run beside each other."""

from kfp import dsl

from components import STEPS_IMAGE


@dsl.component(base_image=STEPS_IMAGE, install_kfp_package=False)
def ingest_shard(config: dict, preflight: str, index: int, count: int) -> str:
    """Validate part `index` of `count` and store it; returns its record."""
    import json

    from understudy.platform.steps import from_kfp, ingest_shards

    return json.dumps(ingest_shards.run_shard(from_kfp(config), int(index), int(count)).to_json())
