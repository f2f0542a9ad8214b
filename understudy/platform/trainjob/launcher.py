"""A step's training as a TrainJob: get or create, wait for its end, say why it waits, take its result, leave nothing.

Every attempt of a step of a run derives the same name, so a launcher that died is replaced by one that re-attaches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from understudy.config.platform import LaunchSettings
from understudy.errors import IntegrityError, Preempted, ServiceUnreachable, UnderstudyError
from understudy.platform.launch_request import FAILURE, REQUEST, Exchange, Request, read_failure, read_result
from understudy.platform.trainjob import preflight, reading
from understudy.platform.trainjob.cluster import AlreadyExists, Cluster, Object
from understudy.platform.trainjob.progress import Progress
from understudy.records import Record

T = TypeVar("T")


class Clock(Protocol):
    """Time, and whether this process was told to end."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        ...

    def wait(self, seconds: float) -> bool:
        """Wait; return at once, and True from then on, when told to end."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait, even when told to end."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds."""

    poll: float = 5
    api: float = 900  # an API server that does not answer; the job runs on meanwhile
    stuck: float = 600  # an image that cannot be pulled, a Secret that is not there
    pods: float = 900  # pods that end, and may save their state first
    cancel: float = 25  # the same, when this pod itself is being ended


@dataclass
class Launcher:
    """One attempt to bring one TrainJob to its end."""

    cluster: Cluster
    job: Object
    request: Request
    settings: LaunchSettings
    exchange: Exchange
    clock: Clock
    say: Callable[[str], None]
    patience: Patience = Patience()

    @property
    def name(self) -> str:
        """The TrainJob's name."""
        return str(self.job["metadata"]["name"])

    def run(self) -> tuple[Record, ...]:
        """Return the records of the training, by this attempt or an earlier one.

        Raises:
            ConfigError: queue, priority or runtime are missing or unfit, or the cluster refuses the job.
            Preempted: told to end; the job was deleted and its processes saved their state.
            ServiceUnreachable: the API server did not answer for long; the job runs on, a retry re-attaches.
            UnderstudyError: the training failed (of the class it raised), waited too long or cannot start.
        """
        returned = self._result()
        if returned is not None:
            self.say(f"TrainJob {self.name} has ended well before; its result is taken.")
            self._tidy()
            return returned
        self.patiently(lambda: preflight.check(self.cluster, self.settings))
        self._follow(self._get_or_create())
        returned = self._result()
        if returned is None:
            raise IntegrityError(
                f"TrainJob {self.name} is Complete, but there is no result of this request at {self.exchange.uri}. "
                "Its image may be of another commit than this step's."
            )
        self._tidy()
        return returned

    def _result(self) -> tuple[Record, ...] | None:
        return self.patiently(lambda: read_result(self.exchange, self.request))

    def _get_or_create(self) -> Object:
        """Return the job to follow: one that runs under this name, or a new one once the old one is gone."""
        while True:
            found = self.patiently(lambda: self.cluster.train_job(self.name))
            if found is None:
                self._wait_until_gone(self.patience.pods)
                self.exchange.remove(FAILURE)
                self.exchange.write(REQUEST, self.request.to_json())
                try:
                    created = self.patiently(lambda: self.cluster.create(self.job))
                except AlreadyExists:
                    continue
                self.say(
                    f"TrainJob {self.name} is created on {self.settings.nodes} nodes, queue {self.settings.queue}."
                )
                return created
            end = reading.end_of(found)
            if end is not None and end.complete and self._result() is not None:
                return found
            if end is None and "deletionTimestamp" not in found["metadata"]:
                self.say(f"TrainJob {self.name} exists; this attempt re-attaches to it.")
                return found
            told = f"ended ({end.reason}: {end.message})" if end else "is being deleted"
            self.say(
                f"TrainJob {self.name} of an earlier attempt {told} without a result; it makes room for a new one."
            )
            self._delete(found)
            self._wait_until_gone(self.patience.pods)

    def _follow(self, job: Object) -> None:
        """Return when the job is Complete; a job that will not get there is deleted.

        Raises: see `run`.
        """
        progress = Progress(self, self.clock.now())
        uid = job["metadata"]["uid"]
        while True:
            found = self.patiently(lambda: self.cluster.train_job(self.name), job)
            if found is None or found["metadata"]["uid"] != uid:
                raise UnderstudyError(
                    f"TrainJob {self.name} was deleted by someone else. Run the step again to resume."
                )
            pods = self.patiently(lambda: self.cluster.pods(self.name), job)
            progress.logs(pods)
            end = reading.end_of(found)
            if end is not None:
                if end.complete:
                    return
                raise self._failure(end, pods, progress.last_lines)
            if (hopeless := progress.look(found, pods)) is not None:
                self._delete(job)
                raise hopeless
            if self.clock.wait(self.patience.poll):
                self._cancel(job)

    def _failure(self, end: reading.End, pods: list[Object], last_lines: list[str]) -> UnderstudyError:
        """The error of a Failed job, with the last lines of the pod that failed first."""
        failed = reading.failed_pods(pods)
        lines = self.last_lines(failed[0]) if failed else []
        where = f" Last lines of pod {failed[0]['metadata']['name']}:" if failed else " Last lines:"
        told = where + "".join(f"\n    {line}" for line in lines or last_lines)
        raised = self.patiently(lambda: read_failure(self.exchange))
        if end.reason == "DeadlineExceeded":
            return UnderstudyError(
                f"TrainJob {self.name} was ended after {self.settings.timeout_seconds} s (DeadlineExceeded). Its state "
                f"is saved; raise platform.steps.{self.settings.step}.timeout_seconds and run it again.{told}"
            )
        if raised is not None:
            return type(raised)(f"{raised} (TrainJob {self.name}: {end.reason}){told}")
        return UnderstudyError(f"TrainJob {self.name} failed ({end.reason}): {end.message}.{told}")

    def last_lines(self, pod: reading.Object) -> list[str]:
        """The end of a pod's log."""
        return self.patiently(lambda: self.cluster.log(pod["metadata"]["name"], tail_lines=20))

    def _cancel(self, job: Object) -> None:
        self.say(f"Told to end: TrainJob {self.name} is deleted, its processes save their state.")
        attempts_left = 5
        while attempts_left:
            try:
                self.cluster.delete(self.name, job["metadata"]["uid"])
                break
            except ServiceUnreachable as error:
                attempts_left -= 1
                if not attempts_left:
                    raise Preempted(f"{error} TrainJob {self.name} is NOT deleted: kubectl delete it.") from error
                self.clock.pause(self.patience.cancel / 5)
        self._wait_until_gone(self.patience.cancel, strict=False)
        raise Preempted(f"Step {self.settings.step} was cancelled and TrainJob {self.name} deleted. Run it to resume.")

    def _delete(self, job: Object) -> None:
        self.patiently(lambda: self.cluster.delete(self.name, job["metadata"]["uid"]))

    def _tidy(self) -> None:
        """Delete the job whose result was taken."""
        if found := self.patiently(lambda: self.cluster.train_job(self.name)):
            self._delete(found)

    def _wait_until_gone(self, seconds: float, strict: bool = True) -> None:
        """Wait for the job's name and for the pods of it that hold GPUs: they outlive a deleted job."""
        until, told = self.clock.now() + seconds, False
        while True:
            found = self.patiently(lambda: self.cluster.train_job(self.name))
            pods = [pod["metadata"]["name"] for pod in self.patiently(lambda: self.cluster.pods(self.name))]
            if found is None and not pods:
                return
            if not told:
                self.say(f"Waiting until pods of TrainJob {self.name} have ended: {', '.join(pods) or 'none yet'}.")
                told = True
            if self.clock.now() >= until:
                if not strict:
                    self.say(f"Still ending: {', '.join(pods)}.")
                    return
                raise UnderstudyError(
                    f"Pods of TrainJob {self.name} have not ended within {seconds:.0f} s: {', '.join(pods)}. A node "
                    "may be lost; look at it, and delete the pods by hand (kubectl delete pod --force) if it is."
                )
            if not strict:
                self.clock.pause(self.patience.poll)
            elif self.clock.wait(self.patience.poll):
                raise Preempted(f"Step {self.settings.step} was told to end before TrainJob {self.name} was created.")

    def patiently(self, call: Callable[[], T], job: Object | None = None) -> T:
        """Make a call, again and again while the server does not answer; `job` is deleted when told to end."""
        until, told = self.clock.now() + self.patience.api, False
        while True:
            try:
                return call()
            except ServiceUnreachable as error:
                if self.clock.now() >= until:
                    raise ServiceUnreachable(f"{error} TrainJob {self.name} runs on; run the step again.") from error
                if not told:
                    self.say(f"{error} The job runs on; asking again.")
                    told = True
            if self.clock.wait(self.patience.poll):
                if job is not None:
                    self._cancel(job)
                raise Preempted(f"Step {self.settings.step} was told to end while Kubernetes did not answer.")
