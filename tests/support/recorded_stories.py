"""Recorded stories as something that can be asked: how did TrainJob, Workload and pods look after t seconds?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

State = Any
FILE = Path(__file__).parent / "recorded" / "trainjob.json"
# A container that was told to end takes this long, and its pod is gone this long after it: shorter than the polls.
_TERM_SECONDS, _GONE_SECONDS = 1.5, 1.0


@cache
def stories() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def refusal(story: str, name: str) -> dict[str, Any]:
    """An answer of the API server as it came: http and body."""
    answer: dict[str, Any] = stories()[story]["responses"][name]
    return answer


@dataclass(frozen=True)
class PodState:
    """One pod at one moment; times are seconds since the TrainJob's creation."""

    index: int  # of the node
    generation: int  # counts the pods that this node had
    born: float
    phase: str
    container: str | None  # "waiting:REASON", "running", "terminated:CODE:REASON"
    container_since: float
    restarts: int
    deleting: bool


class Role:
    """One TrainJob of a story, for example "second" of queued_for_quota_then_runs."""

    def __init__(self, story: str, role: str) -> None:
        events = [(e["seconds"], e["object"], e["state"]) for e in stories()[story]["timeline"]]
        self.job = [(t, s) for t, o, s in events if o == f"trainjob/{role}" and "http" not in s]
        assert self.job, f"story {story} has no TrainJob {role!r}"
        # The recorder saw the job some 0.2 s after it was created.
        start = self.job[0][0] - 0.2
        self.job = [(t - start, s) for t, s in self.job]
        self.workload = [(t - start, s) for t, o, s in events if o == f"workload/{role}"]
        self.node_events: dict[int, list[tuple[float, State]]] = {}
        for t, o, s in events:
            if o.startswith(f"pod/{role}-node-0-"):
                self.node_events.setdefault(int(o.rpartition("-")[2]), []).append((t - start, s))
        self.seconds = max(t - start for t, o, _ in events if o.split("/")[1].startswith(role))

    @staticmethod
    def _latest(events: list[tuple[float, State]], seconds: float) -> State | None:
        return next((state for t, state in reversed(events) if t <= seconds), None)

    def job_at(self, seconds: float) -> State | None:
        return self._latest(self.job, seconds)

    def workload_at(self, seconds: float) -> State | None:
        return self._latest(self.workload, seconds)

    def changes(self, seconds: float) -> int:
        """How often the job has changed: its generation of resource versions."""
        return sum(t <= seconds for t, _ in self.job)

    def pods_at(self, seconds: float) -> list[PodState]:
        pods = (self._pod_at(index, events, seconds) for index, events in sorted(self.node_events.items()))
        return [pod for pod in pods if pod]

    def _pod_at(self, index: int, events: list[tuple[float, State]], seconds: float) -> PodState | None:
        pod: PodState | None = None
        last = 0.0
        for t, state in events:
            if t > seconds:
                break
            new = pod is None or (state["phase"] == "Pending" and (pod.deleting or pod.phase == "Failed"))
            changed = new or (pod is not None and state["container"] != pod.container)
            again = not new and pod is not None and changed and state["container"] == "running" and _has_ended(pod)
            pod = PodState(
                index=index,
                generation=1 if pod is None else pod.generation + new,
                born=t if new or pod is None else pod.born,
                phase=state["phase"],
                container=state["container"],
                container_since=t if changed or pod is None else pod.container_since,
                restarts=0 if new or pod is None else pod.restarts + again,
                deleting=state["deleting"],
            )
            last = t
        if pod is None or not pod.deleting:
            return pod
        return ending(pod, last, seconds)


def ending(pod: PodState, told: float, seconds: float, grace: float = _TERM_SECONDS) -> PodState | None:
    """A pod that was told to end at `told`: it runs on for `grace`, exits with 143, and is gone a little later."""
    ended = pod.container is None or pod.container.startswith("terminated")
    end = told if ended else told + grace
    if seconds >= end + _GONE_SECONDS:
        return None
    deleting = {**pod.__dict__, "deleting": True}
    if seconds < end or ended:
        return PodState(**deleting)
    return PodState(**{**deleting, "phase": "Failed", "container": "terminated:143:Error", "container_since": end})


def _has_ended(pod: PodState) -> bool:
    return pod.restarts > 0 or (pod.container or "").startswith(("terminated", "waiting:CrashLoopBackOff"))
