"""What only MLflow knows, as Prometheus metrics: runs that say nothing, a saturated discriminator, the champion's age.

    python3 -m understudy.platform.exporter --port 9464 --models understudy-ansible

Asks MLflow over its REST interface when it is scraped, so it holds no state and imports no MLflow. When MLflow does
not answer, `understudy_exporter_up` is 0 and everything else is absent: an alert on silence must not fire on that.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from understudy.errors import ConfigError, UnderstudyError
from understudy.platform.mlflow_read import ask
from understudy.platform.storage import without_secrets

UP = "understudy_exporter_up"
RUN_STARTED = "understudy_run_started_timestamp_seconds"
RUN_LAST_METRIC = "understudy_run_last_metric_timestamp_seconds"
CHAMPION_EXISTS = "understudy_champion_exists"
CHAMPION_CREATED = "understudy_champion_created_timestamp_seconds"
# metric → help text; the alerts and the dashboard may use these names and no other of ours (tests/k8s).
METRICS = {
    UP: "1 when MLflow answered this scrape.",
    RUN_STARTED: "When a step that is still running was started.",
    RUN_LAST_METRIC: "When a running step logged its latest training metric (not a system metric), or was started.",
    "understudy_discriminator_accuracy": "How often the discriminator tells expert from policy, of a running step.",
    "understudy_discriminator_held_out_auc": "The same on held-out demonstrations, as AUC (pairwise: within prompts).",
    "understudy_reward_mean": "Mean reward of the latest round of a running step.",
    "understudy_kl_mean": "Mean KL divergence from the reference of the latest round of a running step.",
    CHAMPION_EXISTS: "1 when a version of the model holds the alias champion.",
    CHAMPION_CREATED: "When the champion's version was registered.",
}
_FROM_RUNS = {
    "discriminator_accuracy": "understudy_discriminator_accuracy",
    "held_out_auc": "understudy_discriminator_held_out_auc",
    "reward": "understudy_reward_mean",
    "kl": "understudy_kl_mean",
}
_SYSTEM_PREFIX = "system/"
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Sample:
    """One line of the exposition format."""

    name: str
    labels: dict[str, str]
    value: float


def collect(uri: str, experiment: str, models: Sequence[str]) -> list[Sample]:
    """Return all samples; only `understudy_exporter_up 0` when MLflow does not answer."""
    try:
        samples = [*_runs(uri, experiment), *_champions(uri, models)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"MLflow could not be asked: {type(error).__name__}", file=sys.stderr, flush=True)
        return [Sample(UP, {}, 0)]
    return [Sample(UP, {}, 1), *samples]


def _runs(uri: str, experiment: str) -> Iterator[Sample]:
    found = _ask(uri, "experiments/get-by-name", {"experiment_name": experiment})
    if found is None:
        return
    query = {
        "experiment_ids": [found["experiment"]["experiment_id"]],
        "filter": "attributes.status = 'RUNNING'",
        "max_results": 200,
    }
    for run in (_ask(uri, "runs/search", query, post=True) or {}).get("runs", []):
        tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        step = tags.get("understudy.step", "")
        if step in ("", "run"):
            continue  # the parent run logs nothing while its steps do
        labels = {"step": step, "run_id": tags.get("understudy.run_id", ""), "mlflow_run_id": run["info"]["run_id"]}
        metrics = [item for item in run["data"].get("metrics", []) if not item["key"].startswith(_SYSTEM_PREFIX)]
        started = float(run["info"]["start_time"])
        yield Sample(RUN_STARTED, labels, started / 1000)
        yield Sample(RUN_LAST_METRIC, labels, max([started, *(float(item["timestamp"]) for item in metrics)]) / 1000)
        for item in metrics:
            if item["key"] in _FROM_RUNS:
                yield Sample(_FROM_RUNS[item["key"]], labels, float(item["value"]))


def _champions(uri: str, models: Sequence[str]) -> Iterator[Sample]:
    for model in models:
        answer = _ask(uri, "registered-models/alias", {"name": model, "alias": "champion"})
        yield Sample(CHAMPION_EXISTS, {"model": model}, 0 if answer is None else 1)
        if answer is not None:
            version = answer["model_version"]
            labels = {"model": model, "version": str(version["version"])}
            yield Sample(CHAMPION_CREATED, labels, float(version["creation_timestamp"]) / 1000)


def _ask(uri: str, path: str, query: Mapping[str, Any], post: bool = False) -> dict[str, Any] | None:
    """Return MLflow's answer, or None for what does not exist (yet)."""
    status, content = ask(uri, path, query, _TIMEOUT_SECONDS, post)
    if status == 200:
        return content
    # A registered model without that alias is 400 INVALID_PARAMETER_VALUE, everything else that is missing is 404.
    code = content.get("error_code")
    if code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and path.endswith("/alias")):
        return None
    raise OSError(f"status {status}")


def exposition(samples: Sequence[Sample]) -> str:
    """Return the text format 0.0.4, families together, each with its help."""
    lines = []
    for name, text in METRICS.items():
        family = [sample for sample in samples if sample.name == name]
        if family:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [f"{name}{_labels(sample.labels)} {_number(sample.value)}" for sample in family]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}" if escaped else ""


def _number(value: float) -> str:
    """NaN and infinities have spellings of their own in the format."""
    special = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}
    return special.get(str(value), repr(float(value)))


def server(uri: str, experiment: str, models: Sequence[str], port: int, host: str = "") -> ThreadingHTTPServer:
    """Return a server of /metrics and /healthz, not yet serving; port 0 picks a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._say(200, exposition(collect(uri, experiment, models)), "text/plain; version=0.0.4; charset=utf-8")
            elif self.path == "/healthz":
                self._say(200, "ok\n", "text/plain; charset=utf-8")
            else:
                self._say(404, "There is /metrics and /healthz.\n", "text/plain; charset=utf-8")

        def _say(self, status: int, text: str, kind: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Ignore: a line per scrape says nothing."""

    return ThreadingHTTPServer((host, port), Handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the process is ended.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI is not an HTTP address.
    """
    parser = argparse.ArgumentParser(prog="python3 -m understudy.platform.exporter", description=__doc__)
    parser.add_argument("--port", type=int, default=9464)
    parser.add_argument("--models", default="", help="registered models to watch, separated by commas")
    options = parser.parse_args(arguments)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        shown = without_secrets(uri)
        raise ConfigError(f"MLFLOW_TRACKING_URI is {shown!r}, the exporter needs the http(s):// address of a server.")
    models = [name for name in options.models.split(",") if name]
    with server(uri, os.environ.get("MLFLOW_EXPERIMENT_NAME", "understudy"), models, options.port) as running:
        running.serve_forever()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UnderstudyError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
