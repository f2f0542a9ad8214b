"""Ad-hoc runs on a cluster: create one through KFP's API, watch it, repeat its steps' logs, cancel it.

What KFP 2.17's API offers: the run's state, its tasks with state and pod, and the log of a pod as long as the pod (or
Argo's archive of it) exists, by an address of the old v1alpha1 API that the client has no method for. It does not
offer: events, why a pod waits (Kueue, image pulls), logs of a TrainJob's pods (the launching step repeats them).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from understudy.errors import ConfigError, Preempted, ServiceUnreachable, UnderstudyError
from understudy.platform.schedules_kfp import Kfp

EXPERIMENT = "understudy-adhoc"
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
LAST_LINES = 15
# A restart of the API server takes about a minute; the run does not need it.
PATIENCE_SECONDS = 180.0
_LOG_ADDRESS = "/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log"
_EXECUTOR = re.compile(r"executor(\(\d+\))?")
_STEP_OF_TASK = {"sft-2": "sft_longer"}
# Nodes of Argo's graph that are no step of ours.
_NOT_A_STEP = re.compile(
    r".*-driver(\(\d+\))?|root|executor.*|(exit-handler|condition)-\d+|understudy-retrain.*|.*-hook.*"
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """One step as the API shows it: state, and the pod of its latest attempt."""

    step: str
    state: str
    pod: str
    message: str


@dataclass
class Outcome:
    """How a run stands: `steps` maps step to state."""

    run_id: str
    name: str
    state: str = "PENDING"
    steps: dict[str, str] = field(default_factory=dict)


class Runs(Kfp):
    """The ad-hoc runs of one namespace."""

    def submit(
        self, name: str, spec: Mapping[str, Any] | tuple[str, str], arguments: Mapping[str, Any], account: str
    ) -> Outcome:
        """Create a run of a compiled pipeline, or of a version (pipeline id, version id), exactly once.

        Raises:
            ConfigError: KFP refuses it.
            ServiceUnreachable: KFP does not answer, and has no run of this name.
        """
        import kfp_server_api as api

        experiment = self.experiment(EXPERIMENT)
        version = isinstance(spec, tuple)
        body = api.V2beta1Run(
            display_name=name,
            experiment_id=experiment,
            service_account=account,
            pipeline_spec=None if version else dict(spec),  # type: ignore[arg-type]
            pipeline_version_reference=api.V2beta1PipelineVersionReference(
                pipeline_id=spec[0], pipeline_version_id=spec[1]
            )
            if isinstance(spec, tuple)
            else None,
            runtime_config=api.V2beta1RuntimeConfig(parameters=dict(arguments)),
        )
        try:
            made = self.made("start a run", "run_id", self.client.runs.run_service_create_run, run=body)
        except ServiceUnreachable:
            # The answer may be what was lost: a second run would take the GPUs twice.
            found = self._find(name, experiment)
            if found is None:
                raise
            made = found
        return Outcome(str(made.run_id), name, str(made.state or "PENDING"))

    def tasks(self, run_id: str) -> tuple[str, str, list[Task]]:
        """Return a run's state, KFP's own message and its steps."""
        run = self.call("look at the run", self.client.runs.run_service_get_run, run_id)
        details = (run.run_details.task_details or []) if run.run_details else []
        error = run.error.message if run.error else ""
        return str(run.state or "PENDING"), str(error or ""), list(_steps(details))

    def log(self, run_id: str, pod: str) -> str:
        """Return what a pod has written so far; nothing where it has not started or is gone."""
        client = self.client.runs.api_client
        try:
            answer = self.exchange(
                "read a log",
                client.call_api,
                _LOG_ADDRESS,
                "GET",
                path_params={"run_id": run_id, "pod": pod},
                response_type="str",
                auth_settings=["Bearer"],
                _return_http_data_only=True,
                _preload_content=False,
            )
        except (ConfigError, ServiceUnreachable):
            return ""
        if "html" in answer.headers.get("Content-Type", ""):  # a proxy's page is no line of a pod
            return ""
        return bytes(answer.data).decode("utf-8", errors="replace")

    def cancel(self, run_id: str) -> None:
        """Ask KFP to end a run; its steps get SIGTERM, save, and delete their TrainJobs."""
        self.terminate(run_id)

    def _find(self, name: str, experiment: str) -> Any:
        method = self.client.runs.run_service_list_runs
        runs = self.pages("list runs", method, "runs", experiment_id=experiment, sort_by="created_at desc")
        return next((run for run in runs if run.display_name == name), None)


def wait(runs: Runs, outcome: Outcome, say: Say, poll_seconds: float = 5.0, on_interrupt: str = "leave") -> Outcome:
    """Follow a run to its end: each change of a step's state, and each line its pods write.

    Raises:
        UnderstudyError: the run failed or was cancelled; names the step and its last lines.
        ConfigError: KFP no longer lets this account look. The run goes on.
        Preempted: Ctrl-C. The run goes on, or is asked to end with `on_interrupt="cancel"`.
        ServiceUnreachable: KFP has not answered for three minutes. The run goes on.
    """
    seen = _Seen(runs, outcome, say)
    silent_since = None
    try:
        while True:
            try:
                state, message, tasks = runs.tasks(outcome.run_id)
                silent_since = None
            except ServiceUnreachable as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > PATIENCE_SECONDS:
                    raise ServiceUnreachable(f"{error} {_goes_on(outcome)}") from error
                time.sleep(poll_seconds)
                continue
            except ConfigError as error:
                raise ConfigError(f"{error} {_goes_on(outcome)}") from error
            seen.update(state, tasks)
            if state in ENDED:
                break
            time.sleep(poll_seconds)
    except KeyboardInterrupt as interrupt:
        if on_interrupt == "cancel":
            runs.cancel(outcome.run_id)
            raise Preempted(f"Interrupted; KFP was asked to cancel run {outcome.run_id}.") from interrupt
        raise Preempted(f"Interrupted. {_goes_on(outcome)}") from interrupt
    if state != "SUCCEEDED":
        raise UnderstudyError(seen.why(state, message, tasks))
    return outcome


class _Seen:
    """What was already said about a run."""

    def __init__(self, runs: Runs, outcome: Outcome, say: Say) -> None:
        self.runs, self.outcome, self.say = runs, outcome, say
        self.written: dict[str, str] = {}

    def update(self, state: str, tasks: list[Task]) -> None:
        """Say what changed since the last time."""
        for task in tasks:
            if self.outcome.steps.get(task.step) != task.state:
                self.outcome.steps[task.step] = task.state
                self.say(f"{task.step}: {task.state.lower()}")
            # An ended pod has nothing new to say, once all of it was read.
            if task.pod and not self.written.get(task.pod, "").endswith("\0"):
                self._lines(task)
        if state != self.outcome.state:
            self.outcome.state = state
            self.say(f"run: {state.lower()}")

    def _lines(self, task: Task) -> None:
        before = self.written.get(task.pod, "")
        text = self.runs.log(self.outcome.run_id, task.pod)
        if not text.startswith(before):
            # A log that was rotated: better a line twice than a line lost.
            before = ""
        ended = task.state in ENDED
        whole = text if ended else text[: text.rfind("\n") + 1]
        for line in whole[len(before) :].splitlines():
            self.say(f"{task.step} | {line}")
        self.written[task.pod] = whole + ("\0" if ended else "")

    def why(self, state: str, message: str, tasks: list[Task]) -> str:
        """Return one paragraph about the end, and the failing step's last lines."""
        failed = next((task for task in tasks if task.state == "FAILED"), None)
        if failed is None:
            return f"Run {self.outcome.run_id} ended {state.lower()}{': ' + message if message else ''}."
        lines = [line for line in self.written.get(failed.pod, "").rstrip("\0").splitlines() if line.strip()]
        said = failed.message or message or "KFP gives no reason"
        last = "".join(f"\n    {line}" for line in lines[-LAST_LINES:])
        return (
            f"Step {failed.step} of run {self.outcome.run_id} failed: {said}."
            f"{' Its last lines:' + last if last else ' It has left no log.'}"
        )


def _goes_on(outcome: Outcome) -> str:
    return f"Run {outcome.run_id} goes on; cancel it with `understudy pipeline cancel {outcome.run_id}`."


def _steps(details: list[Any]) -> Iterator[Task]:
    """Yield one Task per step: Argo shows a step as a node with its name, and below it the pod `executor`."""
    parents = {child.pod_name: item for item in details for child in item.child_tasks or () if child.pod_name}
    for item in details:
        if _NOT_A_STEP.fullmatch(item.display_name or ""):
            continue
        executors = [other for other in details if _EXECUTOR.fullmatch(other.display_name or "")]
        mine = [other for other in executors if _step_above(other, parents) is item]
        # Of several attempts the last has the highest number; the one without a number only gathers them.
        mine.sort(key=lambda other: (len(other.display_name), other.display_name))
        pod = (mine[-1] if mine else item).pod_name
        said = [other.error.message for other in (*reversed(mine), item) if other.error and other.error.message]
        step = _STEP_OF_TASK.get(item.display_name, item.display_name)
        yield Task(step, str(item.state or "PENDING"), str(pod or ""), said[0] if said else "")


def _step_above(item: Any, parents: Mapping[str, Any]) -> Any:
    above = parents.get(item.pod_name)
    while above is not None and _EXECUTOR.fullmatch(above.display_name or ""):
        above = parents.get(above.pod_name)
    return above
