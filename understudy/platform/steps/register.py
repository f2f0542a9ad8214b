"""Register the aligned policy with the evidence for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from understudy.config import RegistryConfig, section_sha256, validate
from understudy.errors import IntegrityError
from understudy.platform import tracking, where
from understudy.platform.context import step_context
from understudy.platform.ladder import enter_report, open_ladder
from understudy.platform.lineage.record import build_lineage, store_lineage
from understudy.platform.lineage.sign_version import sign_version
from understudy.platform.registrations import receipt, write_receipt
from understudy.platform.registry import Registry, code_origin
from understudy.records import DatasetRef, EvaluationReport, PolicyRef, RegistryEntry


def run(config: dict[str, Any], policy: PolicyRef, report: EvaluationReport, dataset: DatasetRef) -> RegistryEntry:
    """Put a policy into the registry; again with the same weights and report, return the same version.

    Raises:
        IntegrityError: the records do not belong together, or content differs from its digest.
        ServiceUnreachable: MLflow or the object storage does not answer.
    """
    registry_config = validate(RegistryConfig, config["registry"], where="registry")
    with step_context("register", config) as context:
        check_belonging(policy, report, dataset)
        folder = context.store.fetch(policy.uri, policy.sha256)
        uri = where.tracking_uri(context.workdir)
        run_of_step = tracking.current()
        report_folder = context.store.fetch(report.uri, report.sha256)
        temperature = tuned_temperature(report_folder, policy, report)
        tags = origin_tags(config, policy, report, dataset) | {"pipeline_run": context.run_id}
        if temperature is not None:
            tags["temperature"] = f"{temperature:g}"
        lineage = store_lineage(build_lineage(config, tags, policy, report, dataset, report_folder), context.store)
        registry = Registry(uri, context.workdir)
        entry = registry.register(
            name=registry_config.name,
            alias=registry_config.alias,
            folder=Path(folder),
            tags=tags | {"lineage_uri": lineage.uri, "lineage_sha256": lineage.sha256},
            experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME", "understudy"),
            run_id=run_of_step.run_id if run_of_step else None,
            temperature=temperature,
        )
        entry = sign_version(registry, context.store, entry)
        numbers = json.loads((report_folder / "report.json").read_text(encoding="utf-8"))
        ladder = open_ladder(context.workdir, where.storage_uri())
        enter_report(ladder, numbers, registry.versions(entry.name), report.sha256)
        write_receipt(context.workdir, uri, entry)
        context.finish(entry)
    return entry


def receipt_uri(entry: RegistryEntry) -> str:
    """Return the URI of the KFP artifact: the receipt, which is there as long as the registry confirms the entry."""
    return str(receipt(where.workdir(), entry))


def check_belonging(policy: PolicyRef, report: EvaluationReport, dataset: DatasetRef) -> None:
    """Raise IntegrityError unless the report is about this policy and all three about one dataset version."""
    named = {"policy": policy.dataset_md5, "report": report.dataset_md5, "dataset": dataset.md5}
    if len(set(named.values())) > 1:
        raise IntegrityError(
            f"Policy, report and dataset name different dataset versions: {named}. Run the pipeline again."
        )
    if policy.sha256 not in report.policies.values():
        raise IntegrityError(
            f"The report is about {sorted(report.policies.values())}, not about policy {policy.sha256}. "
            "Evaluate it first."
        )


def tuned_temperature(folder: Path, policy: PolicyRef, report: EvaluationReport) -> float | None:
    """Return the temperature that a report's folder says is best for a policy, None where it tuned none."""
    numbers = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found = numbers.get("temperatures", {}).get(_name_in(report, policy))
    return None if found is None else float(found)


def origin_tags(
    config: dict[str, Any], policy: PolicyRef, report: EvaluationReport, dataset: DatasetRef
) -> dict[str, str]:
    """Return everything by which a version can be followed back to its data, code and configuration."""
    name = _name_in(report, policy)
    metrics = {
        decoding: {metric: interval["value"] for metric, interval in values.items()}
        for decoding, values in report.metrics.get(name, {}).items()
    }
    return {
        "dataset_md5": dataset.md5,
        "source_sha256": dataset.source_sha256,
        "weights_sha256": policy.sha256,
        "weights_uri": policy.uri,
        "stage": policy.stage,
        "base": policy.base,
        "parent_sha256": policy.parent_sha256 or "none",
        "config_sha256": str(config.get("params_sha256") or section_sha256(config)),
        "policy_config_sha256": policy.config_sha256,
        "code_sha256": policy.code_sha256,
        "report_sha256": report.sha256,
        "report_uri": report.uri,
        "verdict": report.verdict,
        "metrics": json.dumps(metrics),
        **({} if policy.stopped_by is None else {"stopped_by": policy.stopped_by}),
        **code_origin(),
    }


def _name_in(report: EvaluationReport, policy: PolicyRef) -> str:
    return next(name for name, sha256 in report.policies.items() if sha256 == policy.sha256)
