"""The log of a job's first node, as it grows: asked for again and again, so that no broken stream loses lines."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence

from understudy.platform.trainjob.cluster import Cluster
from understudy.platform.trainjob.reading import Object, leader

_LINES_OF_THE_PAST = 1000  # shown when a launcher attaches to a job that has run for hours
_KEPT_LINES = 30
_OVERLAP_SECONDS = 10
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


class LogFollower:
    """Hands on each line of each container of the first node once, in order."""

    def __init__(self, cluster: Cluster, show: Callable[[str], None], now: Callable[[], float]) -> None:
        self._cluster, self._show, self._now = cluster, show, now
        self._container: tuple[str, int] | None = None
        self._last_stamp, self._last_untimed, self._read_at = "", "", 0.0
        self.last_lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def poll(self, pods: Sequence[Object]) -> None:
        """Show what came since the last time; nothing while no container has started."""
        pod = leader(pods)
        if pod is None:
            return
        status = pod["status"]["containerStatuses"][0]
        container = (str(pod["metadata"]["uid"]), int(status.get("restartCount", 0)))
        if container != self._container:
            self._container, self._last_stamp, self._last_untimed, self._read_at = container, "", "", 0.0
            self.last_lines.clear()
        started = self._now()
        options = {"tail_lines": _LINES_OF_THE_PAST}
        if self._last_stamp:
            options = {"since_seconds": max(1, round(started - self._read_at) + _OVERLAP_SECONDS)}
        for line in self._cluster.log(pod["metadata"]["name"], timestamps=True, **options):
            stamp, _, text = line.partition(" ")
            if _STAMP.fullmatch(stamp):
                if (key := _sortable(stamp)) > self._last_stamp:
                    self._last_stamp = key
                    self._tell(text)
            elif line and line != self._last_untimed:  # the kubelet's own words, or a line that was cut off
                self._last_untimed = line
                self._tell(line)
        self._read_at = started

    def _tell(self, text: str) -> None:
        self.last_lines.append(text)
        self._show(text)


def _sortable(stamp: str) -> str:
    """Pad the fraction of a second, which may be short: 01.5Z comes after 01.25Z."""
    seconds, _, fraction = stamp.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"
