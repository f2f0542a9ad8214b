"""One MLflow run: opened or found again, then fed from a queue of messages; all calls to MLflow's client are here."""

from __future__ import annotations

import hashlib
import json
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from understudy.platform.storage import first_line

_FLUSH_SECONDS = 5.0
_GIVE_UP_SECONDS = 45.0
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_PARAM_CHARS = 6000
_KEY_CHARS = 250
_PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED"}

Message = dict[str, Any]


class RunWriter:
    """One MLflow run: created, or found again and continued."""

    def __init__(self, opening: Message) -> None:
        from mlflow import MlflowClient

        from understudy.platform.tracking import make_store

        _quiet()
        make_store(opening["uri"])
        self.client = MlflowClient(tracking_uri=opening["uri"])
        self.experiment_id = self._experiment(opening["experiment"], opening["artifacts"])
        self.metrics: list[Any] = []
        self.orphans_parent: str | None = None  # a parent that no process of its own keeps open
        if opening["step"] and not opening["join_run_id"]:
            opening["join_run_id"] = self.orphans_parent = self._parent_of(opening)
        if not opening["step"]:
            self._end_forgotten(opening)
        self.run_id = self._find(opening) or self._create(opening)
        self.logged = self._already_logged()
        self._log_params(opening["params"])
        self.monitor = self._system_metrics(opening) if opening["system_metrics"] and opening["step"] else None

    def serve(self, inbox: queue.Queue[Message], warn: Callable[[str], None]) -> str:
        """Deliver messages until one closes the run; return the run's status.

        Raises:
            Exception: the last reason why something could not be delivered in time.
        """
        pending: list[Message] = []
        flush_at = time.monotonic() + _FLUSH_SECONDS
        while True:
            try:
                message = inbox.get(timeout=max(0.0, flush_at - time.monotonic()))
            except queue.Empty:
                flush_at = time.monotonic() + _FLUSH_SECONDS
                self._try(pending, warn)
                continue
            if message["op"] == "close":
                break
            pending.append(message)
        status = str(message["status"])
        pending.append(message)
        give_up_at = time.monotonic() + _GIVE_UP_SECONDS
        if self.monitor is not None:
            self.monitor.finish()
        while error := self._try(pending, warn):
            if time.monotonic() > give_up_at:
                raise error
            time.sleep(1.0)
        return status

    def _try(self, pending: list[Message], warn: Callable[[str], None]) -> Exception | None:
        """Deliver what can be delivered, in order; return the error that stopped it, if any."""
        try:
            while pending or self.metrics:
                while pending and pending[0]["op"] == "metrics":
                    self._add_metrics(pending.pop(0))
                while self.metrics:
                    batch = self.metrics[:_METRICS_PER_BATCH]
                    self.client.log_batch(self.run_id, metrics=batch, synchronous=True)
                    del self.metrics[: len(batch)]
                if pending:
                    self._deliver(pending[0])
                    pending.pop(0)
        except Exception as error:  # any library below may raise; what is permanent must not block the rest
            if getattr(error, "error_code", None) in _PERMANENT or isinstance(error, FileNotFoundError):
                warn(first_line(error))
                if self.metrics:
                    self.metrics.clear()
                elif pending:
                    pending.pop(0)
                return self._try(pending, warn)
            warn(f"not delivered yet, trying again: {first_line(error)}")
            return error
        return None

    def _deliver(self, message: Message) -> None:
        from mlflow.entities import RunTag

        if message["op"] == "tags":
            tags = [RunTag(name, value) for name, value in message["values"].items()]
            self.client.log_batch(self.run_id, tags=tags, synchronous=True)
        elif message["op"] == "dataset":
            self._log_dataset(message["record"], message["context"])
        elif message["op"] == "artifact":
            self.client.log_artifact(self.run_id, message["path"])
        elif message["op"] == "close":
            self.client.set_terminated(self.run_id, message["status"])
            if self.orphans_parent:
                self.client.set_terminated(self.orphans_parent, message["status"])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow import MlflowException

        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:  # another process was first
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _parent_of(self, opening: Message) -> str | None:
        """Find or create the parent by the pipeline's run id, where nobody gave MLFLOW_RUN_ID."""
        pipeline_run = opening["tags"].get("understudy.run_id")
        if not pipeline_run:
            return None
        wanted = f"tags.`understudy.run_id` = '{pipeline_run}' and tags.`understudy.step` = 'run'"
        found = self.client.search_runs([self.experiment_id], wanted, order_by=["attributes.start_time ASC"])
        if found:
            self._resume(found[0].info.run_id)
            return str(found[0].info.run_id)
        return self._create(dict(opening, step=None, name=pipeline_run, join_run_id=None, lineage=pipeline_run))

    def _end_forgotten(self, opening: Message) -> None:
        """Mark as KILLED what a run of this working directory left open when its machine went down."""
        wanted = f"attributes.status = 'RUNNING' and tags.`understudy.place` = '{opening['place']}'"
        for run in self.client.search_runs([self.experiment_id], wanted):
            self.client.set_terminated(run.info.run_id, "KILLED")

    def _find(self, opening: Message) -> str | None:
        """Find this step's run below its parent, or an unfinished parent run of the same lineage."""
        join, step = opening["join_run_id"], opening["step"]
        if step is None and join:
            self._resume(join)
            return str(join)
        wanted = f"tags.`understudy.lineage` = '{opening['lineage']}' and tags.`understudy.step` = '{step or 'run'}'"
        if join:
            wanted += f" and tags.`mlflow.parentRunId` = '{join}'"
        found = self.client.search_runs([self.experiment_id], wanted, order_by=["attributes.start_time DESC"])
        for run in found:
            if step is not None or run.info.status != "FINISHED":
                self._resume(run.info.run_id, None if step else opening)
                return str(run.info.run_id)
        return None

    def _resume(self, run_id: str, opening: Message | None = None) -> None:
        """Open a run again; a parent goes on under the name and id of the pipeline run that continues it."""
        self.client.update_run(run_id, status="RUNNING", name=opening["name"] if opening else None)
        for name, value in (opening["tags"] if opening else {}).items():
            self.client.set_tag(run_id, name, value)

    def _create(self, opening: Message) -> str:
        tags = {name: value for name, value in opening["tags"].items() if value}
        tags |= {"understudy.lineage": opening["lineage"], "understudy.step": opening["step"] or "run"}
        tags["understudy.place"] = opening["place"]
        if opening["step"] and opening["join_run_id"]:
            tags["mlflow.parentRunId"] = opening["join_run_id"]
        return str(self.client.create_run(self.experiment_id, tags=tags, run_name=opening["name"]).info.run_id)

    def _already_logged(self) -> set[tuple[str, int]]:
        names = [name for name in self.client.get_run(self.run_id).data.metrics if not name.startswith("system/")]
        return {(name, item.step) for name in names for item in self.client.get_metric_history(self.run_id, name)}

    def _add_metrics(self, message: Message) -> None:
        from mlflow.entities import Metric

        for name, value in message["values"].items():
            if (name, message["step"]) not in self.logged:
                self.logged.add((name, message["step"]))
                self.metrics.append(Metric(name[:_KEY_CHARS], value, message["time"], message["step"]))

    def _log_params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        there = self.client.get_run(self.run_id).data.params
        missing = [Param(name[:_KEY_CHARS], _fit(text)) for name, text in params.items() if name not in there]
        for batch in _batches(missing, _PARAMS_PER_BATCH):
            self.client.log_batch(self.run_id, params=batch, synchronous=True)

    def _log_dataset(self, record: dict[str, Any], context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = {name: record[name] for name in ("rows", "splits", "num_bytes", "num_files")}
        dataset = Dataset(
            name="demonstrations",
            digest=record["md5"],
            source_type="local" if "://" not in record["uri"] else record["uri"].partition("://")[0],
            source=json.dumps({"uri": record["uri"], "source": record["source"]}),
            profile=json.dumps(profile),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def _system_metrics(self, opening: Message) -> Any:
        from mlflow.system_metrics import system_metrics_monitor

        monitor_class: Any = system_metrics_monitor.SystemMetricsMonitor
        monitor = monitor_class(self.run_id, resume_logging=True, tracking_uri=opening["uri"])
        monitor.start()
        return monitor


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _fit(text: str) -> str:
    """Cut what MLflow would refuse; the digest keeps different values different."""
    if len(text) <= _PARAM_CHARS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[: _PARAM_CHARS - 100]}… (sha256 {digest})"


def _quiet(names: Iterable[str] = ("mlflow", "alembic", "urllib3")) -> None:
    import logging

    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
