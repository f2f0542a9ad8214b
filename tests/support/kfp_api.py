"""A stub of the KFP API server (v2beta1, 2.17) on a real port of loopback: not KFP, but refuses what KFP does.

    with KfpApi() as api:
        api.apply(manifests)                       # Pipeline and PipelineVersion objects, as GitOps would
        client = kfp.Client(host=api.url, namespace="understudy")

What it enforces, as read from the server's source at tag 2.17.0:
  * unknown fields of a body are refused (400); empty names of runs, recurring runs and experiments give 500, as there;
  * multi-user: an experiment id or a namespace on every list and create, namespaces that exist and belong to the
    caller (400, 403), bearer token when one is configured (401);
  * unique names: experiments per namespace, pipelines per namespace, versions per namespace (409). Runs and recurring
    runs may share names: there are as many as one creates;
  * recurring runs: max_concurrency 1..10, robfig cron (five fields are accepted, and read as seconds first!), interval
    of a second or more, an existing version, the pipeline's parameters; only enable, disable and delete change one;
  * a run created with recurring_run_id gets its id from (recurring run, display name): a second create returns it;
  * deleting a recurring run deletes the workflows of its runs unless propagation_policy=ORPHAN;
  * terminate works on PENDING, RUNNING and PAUSED runs only (400), and ends in CANCELED, which
    kfp.Client.wait_for_run_completion does not take for an end;
  * pages: 20 by default, 200 at most, tokens bound to sorting and filter; empty lists and false booleans are absent;
  * logs of a pod at /apis/v1alpha1/runs/RUN/nodes/POD/log, artifacts at /apis/v2beta1/runs/…/artifacts/NAME:read.

What it is not: a scheduler (call `tick`), an executor (call `finish`), object storage, gRPC, SQL collations.

`fail(n, after=…)` makes the n-th request from now answer 503, before or after it took effect; `calls` lists requests.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from support import kfp_pipelines, kfp_routes, kfp_rows, kfp_runs
from support.kfp_rules import HTTP_STATUS, UNAUTHENTICATED, UNAVAILABLE, UNIMPLEMENTED, Refusal

Row = dict[str, Any]


class KfpApi:
    """The server and what it holds; every `dict` is keyed by id."""

    def __init__(
        self,
        multi_user: bool = True,
        token: str | None = None,
        namespaces: Iterable[str] = ("understudy",),
        forbidden: Iterable[str] = (),
    ):
        self.multi_user, self.token = multi_user, token
        self.namespaces, self.forbidden = set(namespaces), set(forbidden)
        self.experiments: dict[str, Row] = {}
        self.pipelines: dict[str, Row] = {}
        self.versions: dict[str, Row] = {}
        self.recurring_runs: dict[str, Row] = {}
        self.runs: dict[str, Row] = {}
        self.logs: dict[tuple[str, str], str] = {}
        self.artifacts: dict[tuple[str, str, str], bytes] = {}
        self.deleted_workflows: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[Any] = []
        self.lock = threading.RLock()
        self._clock = datetime(2026, 1, 1, tzinfo=UTC)
        self._failures: list[tuple[int, bool]] = []
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def now(self) -> str:
        """Return a time one second after the last one asked for: the server's stamps have whole seconds."""
        self._clock += timedelta(seconds=1)
        return self._clock.strftime("%Y-%m-%dT%H:%M:%SZ")

    def apply(self, manifests: Iterable[Row], namespace: str | None = None) -> dict[str, str]:
        """Apply Pipeline and PipelineVersion objects as GitOps does; return {metadata.name of a version: its id}."""
        ids = {}
        for manifest in sorted(manifests, key=lambda manifest: manifest["kind"]):
            name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
            where = namespace or manifest["metadata"].get("namespace", "understudy")
            if manifest["kind"] == "Pipeline":
                self.add_pipeline(name, where, spec.get("displayName", name))
            elif manifest["kind"] == "PipelineVersion":
                spec_and_platform = {"pipeline_spec": spec["pipelineSpec"]}
                if "platformSpec" in spec:
                    spec_and_platform["platform_spec"] = spec["platformSpec"]
                ids[name] = self.add_version(name, spec["pipelineName"], spec_and_platform, where)
        return ids

    def add_pipeline(self, name: str, namespace: str = "understudy", display_name: str | None = None) -> str:
        """Create a pipeline unless there is one of that name; return its id."""
        row = kfp_rows.find(self.pipelines, name=name, namespace=namespace)
        return (row or kfp_pipelines.create_pipeline(self, name, display_name or name, namespace))["pipeline_id"]

    def add_version(self, name: str, pipeline: str, spec: Row, namespace: str = "understudy") -> str:
        """Create a version (unless there is one) of a pipeline that exists; return its id."""
        parent = kfp_rows.find(self.pipelines, name=pipeline, namespace=namespace)
        assert parent is not None, f"the webhook refuses a version whose pipeline {pipeline} does not exist"
        row = kfp_rows.find(self.versions, name=name, pipeline_id=parent["pipeline_id"])
        return (row or kfp_pipelines.create_version(self, parent, name, spec))["pipeline_version_id"]

    def tick(self, recurring_run_id: str) -> str | None:
        """Start the run that a schedule would start now; None when it is disabled or at its concurrency."""
        with self.lock:
            job = self.recurring_runs[recurring_run_id]
            active = [run for run in self.runs.values() if run.get("recurring_run_id") == recurring_run_id]
            active = [run for run in active if run["state"] in ("PENDING", "RUNNING", "PAUSED")]
            if job["mode"] != "ENABLE" or len(active) >= int(job["max_concurrency"]):
                return None
            copied = ("experiment_id", "pipeline_version_reference", "pipeline_spec", "runtime_config")
            body = {name: job[name] for name in copied if name in job}
            name = f"{job['display_name']}-{len(self.runs)}"
            run = kfp_runs.create_run(self, body | {"display_name": name, "recurring_run_id": recurring_run_id})
            return str(run["run_id"])

    def finish(self, run_id: str, state: str = "SUCCEEDED", message: str = "") -> None:
        """Set a run's state: RUNNING, or an end such as SUCCEEDED, FAILED, CANCELED."""
        with self.lock:
            run = self.runs[run_id]
            run["state"] = state
            run["state_history"].append({"update_time": self.now(), "state": state})
            if state not in ("PENDING", "RUNNING", "PAUSED", "CANCELING"):
                run["finished_at"] = self.now()
            if message:
                run["error"] = {"code": 9, "message": message}

    def set_task(self, run_id: str, name: str, state: str, pod: str, log: str | None = None) -> None:
        """Show a task in a run's details, with its pod and what the pod has written so far."""
        with self.lock:
            tasks = self.runs[run_id].setdefault("run_details", {}).setdefault("task_details", [])
            tasks[:] = [task for task in tasks if task["display_name"] != name]
            task_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{name}"))
            tasks.append({"run_id": run_id, "task_id": task_id, "display_name": name, "state": state, "pod_name": pod})
            if log is not None:
                self.logs[run_id, pod] = log

    def fail(self, nth: int, after: bool = False) -> None:
        """Let the nth request from now (1 is the next) answer 503: before, or after it took effect."""
        self._failures.append((len(self.calls) + nth, after))

    def failure(self) -> tuple[bool, bool]:
        """Say whether the request just counted fails before, and whether it fails after its effect."""
        count = len(self.calls)
        return (count, False) in self._failures, (count, True) in self._failures


class _Handler(BaseHTTPRequestHandler):
    api: KfpApi
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # one packet per answer: two would wait for a delayed acknowledgement
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, method: str) -> None:
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        payload = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.api.lock:
            self.api.calls.append((method, path))
            fails_before, fails_after = self.api.failure()
            try:
                if fails_before:
                    raise Refusal(UNAVAILABLE, "Service unavailable")
                self._authenticate(path)
                result = self._route(method, path, query, payload)
                if fails_after:
                    raise Refusal(UNAVAILABLE, "Service unavailable")
                status, body = 200, result if isinstance(result, bytes) else json.dumps(result).encode()
            except Refusal as refusal:
                status, body = HTTP_STATUS[refusal.code], json.dumps(refusal.body()).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if not path.endswith("/log") else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _authenticate(self, path: str) -> None:
        if self.api.token and self.headers.get("Authorization") != f"Bearer {self.api.token}":
            raise Refusal(UNAUTHENTICATED, "Request header error: there is no user identity header.")

    def _route(self, method: str, path: str, query: dict[str, str], payload: bytes) -> Any:
        found = False
        for verb, pattern, action in kfp_routes.ROUTES:
            match = re.fullmatch(pattern, path)
            found = found or match is not None
            if match and verb == method:
                body: Any = payload
                if self.headers.get_content_type() == "application/json" and payload:
                    body = json.loads(payload)
                    self.api.bodies.append(body)
                request = kfp_rows.Request(query, body, self.headers.get("Content-Type", ""))
                return action(self.api, request, *match.groups())
        raise Refusal(UNIMPLEMENTED, "Method Not Allowed") if found else Refusal(5, "Not Found")
