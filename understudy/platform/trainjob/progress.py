"""What is seen and said of a TrainJob while it runs, and when waiting on cannot help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.errors import ServiceUnreachable, UnderstudyError
from understudy.platform.trainjob import reading
from understudy.platform.trainjob.cluster import Object
from understudy.platform.trainjob.logs import LogFollower

if TYPE_CHECKING:
    from understudy.platform.trainjob.launcher import Launcher


class Progress:
    """What was said about a job so far, and since when it waits."""

    def __init__(self, launcher: Launcher, now: float) -> None:
        self._launcher = launcher
        self._follower = LogFollower(launcher.cluster, launcher.say, launcher.clock.now)
        self._said = ""
        self._waiting_since: float | None = now
        self._stuck_since: float | None = None

    @property
    def last_lines(self) -> list[str]:
        """Of the first node's log."""
        return list(self._follower.last_lines)

    def logs(self, pods: list[Object]) -> None:
        """Show new lines of the log; a log that cannot be read now is no reason to fail."""
        try:
            self._follower.poll(pods)
        except ServiceUnreachable:
            return

    def look(self, job: Object, pods: list[Object]) -> UnderstudyError | None:
        """Say what changed; return an error when waiting on cannot help."""
        now, launcher = self._launcher.clock.now(), self._launcher
        if reading.is_suspended(job):
            return self._look_at_queue(job, now)
        self._waiting_since = None
        if (pod := reading.crashed_in_place(pods)) is not None:
            lines = launcher.last_lines(next(item for item in pods if item["metadata"]["name"] == pod))
            return UnderstudyError(
                f"TrainJob {launcher.name}: the container of pod {pod} failed and was started again in place, which "
                f"would hold its GPUs for ever; the job was deleted. Runtime {launcher.settings.runtime} must have "
                "restartPolicy Never and backoffLimit 0. Last lines:" + "".join(f"\n    {line}" for line in lines)
            )
        if (why := reading.stuck(pods)) is not None:
            self._stuck_since = now if self._stuck_since is None else self._stuck_since
            if now - self._stuck_since >= launcher.patience.stuck:
                return UnderstudyError(f"TrainJob {launcher.name} cannot start and was deleted. {why}")
        else:
            self._stuck_since = None
        why = why or reading.unschedulable(pods)
        self._say(f"TrainJob {launcher.name} is admitted" + (f", but waits: {why}" if why else "."))
        return None

    def _look_at_queue(self, job: Object, now: float) -> UnderstudyError | None:
        launcher = self._launcher
        settings = launcher.settings
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        waiting = reading.why_waiting(launcher.patiently(lambda: launcher.cluster.workload(job["metadata"]["uid"])))
        self._say(f"TrainJob {launcher.name} waits in queue {settings.queue}: {waiting.why}")
        if waiting.hopeless:
            return UnderstudyError(
                f"TrainJob {launcher.name} would wait for ever and was deleted: {waiting.why}. Correct "
                "platform.scheduled.local_queue (or adhoc) or the queues in k8s/."
            )
        if now - self._waiting_since >= settings.queue_timeout_seconds:
            return UnderstudyError(
                f"TrainJob {launcher.name} waited {now - self._waiting_since:.0f} s in queue {settings.queue} and was "
                f"deleted: {waiting.why}. Free quota, or raise platform.steps.{settings.step}.queue_timeout_seconds "
                f"({settings.queue_timeout_seconds})."
            )
        return None

    def _say(self, message: str) -> None:
        if message != self._said:
            self._said = message
            self._launcher.say(message)
