"""What `understudy model watch` finds, as Prometheus metrics: on a port, or in a file for the textfile collector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from understudy.errors import ConfigError

if TYPE_CHECKING:
    from understudy.evaluation.drift import Window

# metric → help text; docs/monitoring.md's alert uses these names.
METRICS = {
    "understudy_watch_distance": "Kolmogorov-Smirnov distance of the latest window from the reference, 0 to 1.",
    "understudy_watch_threshold": "What the distance of that window had to exceed to count as drift.",
    "understudy_watch_drift": "1 when the metric drifted in any window since the watch began.",
    "understudy_watch_windows": "Windows tested since the watch began.",
    "understudy_watch_rows": "Good rows read since the watch began.",
    "understudy_watch_quarantined_rows": "Rows refused since the watch began.",
}
_BY_METRIC = ("understudy_watch_distance", "understudy_watch_threshold", "understudy_watch_drift")


class WatchMetrics:
    """Gauges of one watch.

    Args:
        model: the model's name.
        version: which version is watched.
        port: serve them there; None: do not.
        host: the address to listen on.
        file: write them there after each window; None: do not.

    Raises:
        ConfigError: the port cannot be listened on.
    """

    def __init__(self, model: str, version: str, port: int | None, host: str, file: Path | None) -> None:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        self.registry, self.file = CollectorRegistry(), file
        self._labels = {"model": model, "version": version}
        self._gauges = {
            name: Gauge(
                name, text, [*self._labels, *(["metric"] if name in _BY_METRIC else [])], registry=self.registry
            )
            for name, text in METRICS.items()
        }
        self._drifted: set[str] = set()
        self._server = None
        self.update(None, 0, 0)
        if port is not None:
            try:
                self._server, _ = start_http_server(port, host, self.registry)
            except OSError as error:
                raise ConfigError(
                    f"--metrics-port {port} on {host} cannot be listened on: {error}. Choose another, or use 0."
                ) from error

    @property
    def port(self) -> int | None:
        """Where the metrics are served."""
        return self._server.server_port if self._server else None

    def count(self, num_rows: int, num_refused: int) -> None:
        """Take in how much was read, also where no window is ever full."""
        self._gauges["understudy_watch_rows"].labels(**self._labels).set(num_rows)
        self._gauges["understudy_watch_quarantined_rows"].labels(**self._labels).set(num_refused)

    def update(self, window: Window | None, num_rows: int, num_refused: int) -> None:
        """Take in a window."""
        self.count(num_rows, num_refused)
        self._gauges["understudy_watch_windows"].labels(**self._labels).set(window.number if window else 0)
        for found in window.metrics if window else ():
            labels = self._labels | {"metric": found.metric.replace(" ", "_")}
            if found.drift:
                self._drifted.add(found.metric)
            if found.distance is not None and found.threshold is not None:
                self._gauges["understudy_watch_distance"].labels(**labels).set(found.distance)
                self._gauges["understudy_watch_threshold"].labels(**labels).set(found.threshold)
            self._gauges["understudy_watch_drift"].labels(**labels).set(found.metric in self._drifted)
        if self.file is not None:
            from prometheus_client import write_to_textfile

            self.file.parent.mkdir(parents=True, exist_ok=True)
            # It writes aside and renames.
            write_to_textfile(str(self.file), self.registry)

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
