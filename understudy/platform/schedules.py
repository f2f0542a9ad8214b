"""Reviewed schedules and KFP's recurring runs: the difference, and what makes it go away.

KFP cannot change a recurring run, only create, enable, disable and delete one, and names need not be unique. So a spec
is part of the name (its hash), and a change is: create the new one disabled, disable the old one, enable the new one,
delete the old one. After a crash between any two calls, the next `apply` finds what is there and does the rest; at no
moment are two versions of a schedule enabled. What it did not make itself, by name and description, it never touches.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from understudy.config import Params
from understudy.errors import ConfigError, ServiceUnreachable
from understudy.platform.budget import Estimate, estimate, over_budget
from understudy.platform.schedules_kfp import Kfp, RecurringRun
from understudy.platform.schedules_spec import HASH_CHARS, PREFIX, Schedule

COMPILED = Path("pipelines/compiled/kubernetes")
ArgumentsOf = Callable[[Params], Mapping[str, Any]]
Kind = Literal["create", "replace", "enable", "disable", "delete", "unchanged"]
_NAME = re.compile(rf"{PREFIX}(?P<schedule>[a-z0-9-]+)-[0-9a-f]{{{HASH_CHARS}}}")


@dataclass(frozen=True)
class Wanted:
    """One schedule, worked out: the recurring run that it asks for, and what a run of it is expected to cost."""

    schedule: Schedule
    arguments: Mapping[str, Any]
    name: str
    account: str  # of the pods of its runs
    estimate: Estimate


@dataclass(frozen=True)
class Action:
    """What has to happen for one schedule."""

    kind: Kind
    schedule: str
    name: str  # of the recurring run that stays or goes
    why: str
    remove: tuple[str, ...] = ()  # ids of the recurring runs that go
    keep: str = ""  # id of the one that stays


@dataclass(frozen=True)
class Plan:
    """The difference between Git and KFP."""

    actions: tuple[Action, ...]
    estimates: Mapping[str, Estimate]
    versions: Mapping[str, tuple[str, str]] = field(repr=False)
    foreign: tuple[str, ...] = ()  # recurring runs that look like ours and are not

    @property
    def drifted(self) -> bool:
        """Whether anything has to happen."""
        return any(action.kind != "unchanged" for action in self.actions)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {
            "drifted": self.drifted,
            "actions": [asdict(action) for action in self.actions],
            "estimates": {name: asdict(item) for name, item in self.estimates.items()},
            "foreign": list(self.foreign),
        }


def work_out(schedules: Mapping[str, Schedule], base: Path, arguments_of: ArgumentsOf) -> dict[str, Wanted]:
    """Return what each schedule asks for.

    Args:
        schedules: by name.
        base: the params file that schedules override.
        arguments_of: the pipeline's arguments from params (pipelines.arguments).

    Raises:
        ConfigError: params that are wrong, an estimate or a deadline above its budget; of all schedules at once.
    """
    wanted: dict[str, Wanted] = {}
    problems: list[str] = []
    for name, schedule in schedules.items():
        try:
            params = schedule.run_params(base)
            expected = estimate(params)
            if problem := over_budget(params, expected, schedule.budget_gpu_hours):
                problems.append(f"schedule {name}: {problem}")
            arguments = arguments_of(params)
        except ConfigError as error:
            problems.append(f"schedule {name}: {error}")
            continue
        account = params.platform.service_account
        wanted[name] = Wanted(schedule, arguments, schedule.run_name(arguments), account, expected)
    if problems:
        raise ConfigError("\n".join(problems))
    return wanted


def make_plan(wanted: Mapping[str, Wanted], kfp: Kfp, compiled: Path = COMPILED) -> Plan:
    """Compare what Git asks for with what KFP has; nothing is changed.

    Raises:
        ConfigError: a pinned version exists neither in `compiled` nor in KFP; names the closest one.
        ServiceUnreachable: KFP does not answer.
    """
    versions: dict[str, tuple[str, str]] = {}
    for pipeline in sorted({item.schedule.pipeline for item in wanted.values()}):
        versions |= kfp.versions(pipeline)
    if problems := pin_problems([item.schedule for item in wanted.values()], {*versions, *compiled_versions(compiled)}):
        raise ConfigError("\n".join(problems))
    groups: dict[str, list[RecurringRun]] = {}
    foreign: list[str] = []
    for run in kfp.recurring_runs(PREFIX):
        match = _NAME.fullmatch(run.name)
        if match and run.ours:
            groups.setdefault(match["schedule"], []).append(run)
        elif match:
            foreign.append(run.name)
    actions = [_action(item, groups.pop(name, []), versions) for name, item in wanted.items()]
    for name, runs in sorted(groups.items()):
        why = "no file in Git asks for it"
        actions.append(Action("delete", name, runs[0].name, why, remove=tuple(run.id for run in runs)))
    return Plan(tuple(actions), {name: item.estimate for name, item in wanted.items()}, versions, tuple(foreign))


def _action(wanted: Wanted, runs: Sequence[RecurringRun], versions: Mapping[str, tuple[str, str]]) -> Action:
    schedule = wanted.schedule
    _, version_id = versions.get(schedule.pipeline_version, ("", ""))
    same = [run for run in runs if _matches(run, wanted, version_id)]
    if not same:
        kind: Kind = "replace" if runs else "create"
        why = f"the spec changed: was {', '.join(run.name for run in runs)}" if runs else "it is not in KFP"
        return Action(kind, schedule.name, wanted.name, why, remove=tuple(run.id for run in runs))
    kept, rest = same[0], [run for run in runs if run.id != same[0].id]
    remove = tuple(run.id for run in rest)
    if rest:
        why = f"left over beside it: {', '.join(run.name for run in rest)}"
        return Action("replace", schedule.name, wanted.name, why, remove, kept.id)
    if kept.enabled != schedule.enabled:
        kind = "enable" if schedule.enabled else "disable"
        return Action(
            kind, schedule.name, wanted.name, f"Git says enabled: {str(schedule.enabled).lower()}", (), kept.id
        )
    return Action("unchanged", schedule.name, wanted.name, "", (), kept.id)


def _matches(run: RecurringRun, wanted: Wanted, version_id: str) -> bool:
    """Whether a recurring run is what the name says: somebody may have made another one under it."""
    same_settings = run.max_concurrency == 1 and run.no_catchup and run.cron == wanted.schedule.cron
    same_code = run.version_id == version_id and run.account == wanted.account
    return run.name == wanted.name and same_code and same_settings


def apply(plan: Plan, wanted: Mapping[str, Wanted], kfp: Kfp, tell: Callable[[str], None] = lambda line: None) -> None:
    """Do what a plan says, in an order in which a crash leaves at most one version of a schedule enabled.

    Raises:
        ServiceUnreachable: KFP does not answer, or lacks a version that Git has (its sync wave is not through).
    """
    missing = [
        item.schedule.pipeline_version
        for item in wanted.values()
        if item.schedule.pipeline_version not in plan.versions
    ]
    if missing:
        raise ServiceUnreachable(
            f"KFP does not have {', '.join(sorted(set(missing)))} yet, though it is in Git. Argo CD applies pipelines "
            "a wave before schedules: look at the application `understudy-pipelines`, then run the same command again."
        )
    for action in plan.actions:
        if action.kind == "unchanged":
            continue
        item = wanted.get(action.schedule)
        kept = action.keep
        if item is not None and not kept:
            ids = plan.versions[item.schedule.pipeline_version]
            enabled = item.schedule.enabled and not action.remove
            note = f"{item.schedule.pipeline_version}, at most {item.schedule.budget_gpu_hours:g} GPU hours a run"
            kept = kfp.create(item.name, item.schedule.cron, ids, item.arguments, enabled, note, item.account)
        for old in action.remove:
            kfp.set_enabled(old, False)
        if item is not None and (action.keep or action.remove):
            kfp.set_enabled(kept, item.schedule.enabled)
        for old in action.remove:
            kfp.delete(old)
        tell(f"{action.kind} {action.name}: {action.why}")


def compiled_versions(folder: Path) -> set[str]:
    """Return the names of the PipelineVersions whose manifests are in a folder; none if there is no folder."""
    names = set()
    for path in sorted(folder.glob("**/*.yaml")):
        for item in yaml.load_all(
            path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        ):
            if isinstance(item, dict) and item.get("kind") == "PipelineVersion":
                names.add(str(item["metadata"]["name"]))
    return names


def pin_problems(schedules: Sequence[Schedule], known: set[str]) -> list[str]:
    """Return one line for each schedule whose pinned version is not known."""
    problems = []
    for schedule in schedules:
        if schedule.pipeline_version in known:
            continue
        close = difflib.get_close_matches(schedule.pipeline_version, sorted(known), n=1, cutoff=0)
        remedy = f"the closest is {close[0]!r}" if close else "there is none at all: `understudy pipeline compile`"
        problems.append(
            f"schedule {schedule.name}: pipeline_version {schedule.pipeline_version!r} exists neither in Git nor in "
            f"KFP; {remedy}"
        )
    return problems
