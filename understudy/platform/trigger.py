"""Start a retraining when a source holds new content, and do nothing when its content is known.

KFP itself is the memory: the run for a content is named after the schedule and the digest of the source. It is created
as a run of the schedule's recurring run, and KFP 2.17 gives such a run an id that follows from recurring run and name:
of two triggers that race, the second gets the first one's run. (KFP makes the workflow before the row, so a race within
that moment can leave a second workflow; only KFP can prevent that.) A schedule that was replaced meanwhile has another
recurring run, so runs of that name are looked for first; a trigger and an `apply` that race can still start two.

A run that failed or was terminated counts as known: whoever looks at it decides (`--again`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.config import Params
from understudy.errors import ServiceUnreachable
from understudy.platform.schedules_kfp import Kfp
from understudy.platform.schedules_spec import PREFIX, Schedule

DIGEST_CHARS = 16
ArgumentsWithDigest = Callable[[Params, str], Mapping[str, Any]]


@dataclass(frozen=True)
class Triggered:
    """What a trigger did for one schedule."""

    schedule: str
    source: str
    source_sha256: str
    run_name: str
    run_id: str | None
    started: bool
    why: str


def trigger(
    schedule: Schedule,
    base: Path,
    kfp: Kfp,
    digest_of: Callable[[str], str],
    arguments_of: ArgumentsWithDigest,
    again: bool = False,
    dry_run: bool = False,
) -> Triggered:
    """Start a run of a schedule's pinned version if the content of its source is new.

    Args:
        schedule: an enabled one with `on_new_data`; others are told why nothing happens.
        base: the params file that the schedule overrides.
        kfp: where runs are.
        digest_of: digest of a source's content (platform.steps.ingest.source_sha256).
        arguments_of: the pipeline's arguments from params and that digest.
        again: start even if a run of this content ended without success.
        dry_run: say what would happen.

    Raises:
        ServiceUnreachable: KFP or the source does not answer, or `schedule apply` has not run yet.
    """
    params = schedule.run_params(base)
    source = params.data.source
    if not (schedule.enabled and schedule.on_new_data):
        reason = "it is not enabled" if not schedule.enabled else "on_new_data is false"
        return Triggered(schedule.name, source, "", "", None, False, reason)
    digest = digest_of(source)
    name = f"{PREFIX}{schedule.name}-data-{digest[:DIGEST_CHARS]}"
    earlier = [run for run in kfp.runs() if run.display_name == name or run.display_name.startswith(f"{name}-again-")]
    if earlier and not (again and all(run.state in ("FAILED", "CANCELED", "CANCELING") for run in earlier)):
        newest = earlier[0]
        return Triggered(schedule.name, source, digest, name, newest.run_id, False, f"known: its run is {newest.state}")
    if earlier:
        name = f"{name}-again-{len(earlier)}"
    why = "the content is new" if not earlier else f"again: the last run is {earlier[0].state}"
    if dry_run:
        return Triggered(schedule.name, source, digest, name, None, False, f"would start: {why}")
    run_id = _start(schedule, name, digest, arguments_of(params, digest), params.platform.service_account, kfp)
    return Triggered(schedule.name, source, digest, name, run_id, True, why)


def _start(schedule: Schedule, name: str, digest: str, arguments: Mapping[str, Any], account: str, kfp: Kfp) -> str:
    import kfp_server_api as api

    parents = [run for run in kfp.recurring_runs_of(schedule.name) if run.enabled]
    ids = kfp.versions(schedule.pipeline).get(schedule.pipeline_version)
    if not parents or ids is None:
        missing = (
            schedule.pipeline_version if ids is None else f"an enabled recurring run of schedule {schedule.name!r}"
        )
        raise ServiceUnreachable(
            f"KFP does not have {missing} yet. Run `understudy schedule apply` (Argo CD does it after each sync), then "
            "the trigger again."
        )
    body = api.V2beta1Run(
        display_name=name,
        description=f"New content of the source: sha256 {digest}",
        experiment_id=parents[0].experiment_id,
        recurring_run_id=parents[0].id,
        service_account=account,
        pipeline_version_reference=api.V2beta1PipelineVersionReference(pipeline_id=ids[0], pipeline_version_id=ids[1]),
        runtime_config=api.V2beta1RuntimeConfig(parameters=dict(arguments)),
    )
    made = kfp.made(f"start the run {name}", "run_id", kfp.client.runs.run_service_create_run, run=body)
    return str(made.run_id)
