"""The pipeline's arguments from the params: each step gets the whole config that it reads, and nothing else.

What a step's result depends on is in its dict, so that equal dicts mean equal results: the params it reads, the
seed, the digest of its code, and digests of the content that the params only name by path (source, judges, model).
Operational settings (services, folders, threads) are not here; they travel by environment.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from understudy.config import Params, PromotionConfig, section_sha256
from understudy.platform.code_hash import code_sha256, folder_sha256, target_sha256

RESULT_SECTIONS = ("seed", "data", "model", "sft", "align", "evaluation", "registry")


def arguments(params: Params, digest_of: Callable[[str], str | None] | None = None) -> dict[str, Any]:
    """Return the pipeline's arguments: one dict per step, and whether the last step may promote.

    `digest_of` gives the digest of the source, by default from its content now. A schedule's runs find it themselves,
    each at its time: for them it gives None.

    Raises:
        ConfigError: the gate by which the last step would promote is wrong.
        ConfigError, DataRefused, ServiceUnreachable: the source of the demonstrations cannot be read.
    """
    from understudy.platform.steps import for_kfp
    from understudy.platform.steps.ingest import source_sha256

    source = {"source_sha256": (digest_of or source_sha256)(params.data.source)}
    base = {"base_sha256": _model_sha256(params.model.path)}
    judges = {"judges_sha256": {judge.name: target_sha256(judge.code) for judge in params.evaluation.judges}}
    name = {"name": params.registry.name}
    dump = params.model_dump(mode="json")
    everything = {section: dump[section] for section in RESULT_SECTIONS}
    promotion = _promotion(params.promotion)
    configs: dict[str, dict[str, Any]] = {
        "preflight_config": {**_step("preflight", params), **everything, **source, **base, **judges, **promotion},
        "ingest_config": _step("ingest", params, "data") | source,
        "sft_config": _step("sft", params, "model", "sft") | base,
        "align_config": _step("align", params, "model", "align") | base | _withheld(params),
        "sft_longer_config": _step("sft", params, "model", "sft") | base | {"step": "sft_longer"},
        "champion_config": {"step": "champion", **name},
        "evaluate_config": _step("evaluate", params, "model", "evaluation") | base | judges | name,
        "register_config": _step("register", params, "registry") | {"params_sha256": params_sha256(params)},
        "notify_config": {"step": "notify", **dump["notify"]},
    }
    # The registry keeps what led to a model, not only its digest; as text, which no parameter type can bend.
    training = {step: configs[f"{step}_config"] for step in ("ingest", "sft", "align", "sft_longer", "evaluate")}
    configs["register_config"] |= {
        "params_json": json.dumps([_result_params(params)], sort_keys=True),
        "configs_json": json.dumps(training, sort_keys=True),
    }
    if promotion:
        configs["promote_config"] = {"step": "promote", **promotion}
    given: dict[str, Any] = {name: for_kfp(config) for name, config in configs.items()}
    # Left out where it is off: pipeline versions from before the step, to which a rollback may pin, refuse the name.
    return given | ({"promotion_enabled": True} if promotion else {})


def _withheld(params: Params) -> dict[str, Any]:
    """Return what align reads of the sft section, which is nothing where it takes all demonstrations."""
    if params.align.demonstrations == "all":
        return {}
    return {"withheld_fraction": params.sft.withheld_fraction}


def _promotion(promotion: PromotionConfig) -> dict[str, Any]:
    """Return what preflight and promote read of it: the gate as it was reviewed, since a pod has no checkout."""
    if not promotion.enabled:
        return {}
    from understudy.evaluation.gate.schema import load_gate

    path = Path(promotion.gate)
    load_gate(path)
    return {"promotion": promotion.model_dump(mode="json"), "gate_yaml": path.read_text("utf-8")}


def params_sha256(params: Params) -> str:
    """Return the digest of everything in the params that can change a result."""
    return section_sha256(_result_params(params))


def _result_params(params: Params) -> dict[str, Any]:
    sections = {name: getattr(params, name) for name in RESULT_SECTIONS}
    return {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for name, value in sections.items()
    }


def _step(step: str, params: Params, *sections: str) -> dict[str, Any]:
    values = {section: getattr(params, section).model_dump(mode="json") for section in sections}
    return {"step": step, "seed": params.seed, "code_sha256": code_sha256(step), **values}


def _model_sha256(path: str | None) -> str | None:
    folder = Path(path) if path else None
    return folder_sha256(folder) if folder is not None and folder.is_dir() else None
