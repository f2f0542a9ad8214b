"""A Kubernetes API server on a real port of loopback that replays recorded stories of TrainJobs: not Kubernetes.

    with KubernetesApi(clock.now, rules) as api:
        api.will_play("queued_for_quota_then_runs", "second")      # what happens to the next TrainJob created
        cluster = Cluster("understudy", api.client())

What it enforces, as recorded: 409 for a name that exists, finished jobs included; 404; 422 for bad and long names and
for changes of spec.trainer; 403 for a missing runtime; unknown fields are dropped, and 400 with
fieldValidation=Strict; a deleted TrainJob is 404 at once while its pods end; no log before a container has started;
uid preconditions of a delete; and, with `rules`, that each call is allowed by them (403). It is not a scheduler: what
happens to a job is the story's, on the clock that is given. `calls` lists what was asked for.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from support.recorded_stories import PodState, Role, ending, refusal

Object = dict[str, Any]
NAMESPACE = "understudy"
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)


class Refusal(Exception):
    """An answer that is not 2xx."""

    def __init__(self, http: int, reason: str, message: str, body: Object | None = None) -> None:
        super().__init__(message)
        self.http = http
        failure = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self.body = body or {**failure, "message": message, "reason": reason, "code": http}


@dataclass(frozen=True)
class Call:
    """One request, in the words of RBAC."""

    verb: str
    group: str
    resource: str  # with "/log" where that is asked for
    name: str | None

    def allowed_by(self, rule: Object) -> bool:
        return (
            self.group in rule["apiGroups"]
            and self.resource in rule["resources"]
            and self.verb in rule["verbs"]
            and ("resourceNames" not in rule or self.name in rule["resourceNames"])
        )


@dataclass
class Job:
    """A TrainJob and the story it lives."""

    manifest: Object
    role: Role
    created: float
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    deleted: float | None = None
    completed: bool = False

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])


class KubernetesApi:
    """The server, and what it holds."""

    def __init__(self, now: Callable[[], float], rules: Iterable[Object] | None = None) -> None:
        self.now = now
        self.rules = None if rules is None else list(rules)
        self.calls: list[Call] = []
        self.created: list[Object] = []  # TrainJobs, as they were asked for
        self.jobs: dict[str, Job] = {}
        self.ending: list[Job] = []  # deleted, with pods that may not have ended
        self.pod_grace_seconds = 1.5
        self.cluster_objects: dict[tuple[str, str], Object] = {}  # (resource, name)
        self.queues: dict[str, Object] = {}
        self.extra_pods: dict[str, Object] = {}
        self.log_lines: list[tuple[float, str]] = []  # (seconds since the job's creation, text), of every pod
        self.when_complete: Callable[[Job], None] = lambda job: None
        self.outages: deque[str] = deque()  # of the next requests: "before" or "after" their effect, "throttled", "no"
        self._roles: deque[Role] = deque()
        self.lock = threading.RLock()

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def client(self) -> Any:
        """The official client for this server."""
        from kubernetes import client

        configuration = client.Configuration(host=self.url)
        configuration.retries = False
        return client.ApiClient(configuration)

    def will_play(self, story: str, role: str) -> None:
        """Say what happens to the next TrainJob that is created."""
        self._roles.append(Role(story, role))

    # What requests see

    def handle(self, method: str, path: str, query: dict[str, str], body: Object) -> Object | str:
        found = _PATH.fullmatch(path)
        if found is None:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        group, resource, name, sub = (found[key] for key in ("group", "resource", "name", "sub"))
        verbs = {"POST": "create", "DELETE": "delete", "PATCH": "patch", "PUT": "update"}
        verb = verbs.get(method) or ("get" if name else "watch" if query.get("watch", "").lower() == "true" else "list")
        call = Call(verb, group or "", f"{resource}/{sub}" if sub else resource, name)
        self.calls.append(call)
        self._authorise(call)
        if call.resource == "trainjobs":
            return self._train_jobs(call, query, body)
        if call.verb == "list" and resource in ("pods", "workloads"):
            items = self._pods(query.get("labelSelector", "")) if resource == "pods" else self._workloads()
            return {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}
        if call.verb != "get" or name is None:
            raise Refusal(405, "MethodNotAllowed", f"the replay does not {call.verb} {resource}")
        if resource == "pods":
            return self._log(name, query) if sub == "log" else self._found(self._named_pods(), resource, name)
        if resource == "localqueues":
            return self._found(self.queues, "localqueues.kueue.x-k8s.io", name)
        return self._found(
            {key[1]: item for key, item in self.cluster_objects.items() if key[0] == resource}, resource, name
        )

    def _authorise(self, call: Call) -> None:
        if self.rules is not None and not any(call.allowed_by(rule) for rule in self.rules):
            what = f"{call.resource}.{call.group}" if call.group else call.resource
            raise Refusal(
                403,
                "Forbidden",
                f'{what} "{call.name}" is forbidden: User "system:serviceaccount:{NAMESPACE}:understudy-runner" cannot '
                f'{call.verb} resource "{call.resource}" in API group "{call.group}"',
            )

    def _train_jobs(self, call: Call, query: dict[str, str], body: Object) -> Object:
        if call.verb == "create":
            return self._create(query, body)
        if call.verb == "list":
            return {"kind": "TrainJobList", "items": [self._view(job) for job in self.jobs.values()], "metadata": {}}
        job = self.jobs.get(call.name or "")
        if job is None:
            raise Refusal(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{call.name}" not found')
        if call.verb == "get":
            return self._view(job)
        if call.verb == "delete":
            wanted = (body or {}).get("preconditions", {}).get("uid", job.uid)
            if wanted != job.uid:
                raise Refusal(
                    409, "Conflict", f"Precondition failed: UID in precondition: {wanted}, in object: {job.uid}"
                )
            job.deleted = self.now()
            self.ending.append(self.jobs.pop(job.name))
            details = {"name": job.name, "group": "trainer.kubeflow.org", "kind": "trainjobs"}
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        raise _recorded("refusals", "update_numNodes", "upd", job.name)

    def _create(self, query: dict[str, str], body: Object) -> Object:
        from kubeflow_trainer_api import models

        name = body["metadata"]["name"]
        known = models.TrainerV1alpha1TrainJob.from_dict(body).to_dict()
        unknown = sorted(_paths(body) - _paths(known))
        if unknown and query.get("fieldValidation") == "Strict":
            told = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise Refusal(400, "BadRequest", f"strict decoding error: {told}")
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
            raise _recorded("refusals", "bad_name", "Bad_Name", name)
        if len(name) > 63:
            raise _recorded("refusals", "long_name", "a" * 70, name)
        if ("clustertrainingruntimes", known["spec"]["runtimeRef"]["name"]) not in self.cluster_objects:
            raise _recorded("refusals", "missing_runtime", "nope", known["spec"]["runtimeRef"]["name"])
        if name in self.jobs:
            raise _recorded("same_name_twice", "second_create", "dup", name)
        assert self._roles, "a TrainJob was created, and the test did not say what is to happen to it"
        self.created.append(known)
        self.jobs[name] = job = Job(known, self._roles.popleft(), self.now())
        return self._view(job)

    def _view(self, job: Job) -> Object:
        seconds = self.now() - job.created
        state = job.role.job_at(seconds) or {
            "suspend": "kueue.x-k8s.io/queue-name" in job.manifest["metadata"]["labels"]
        }
        status = state.get("status") or {}
        if not job.completed and any(c["type"] == "Complete" for c in status.get("conditions", [])):
            job.completed = True
            self.when_complete(job)
        server = {"uid": job.uid, "creationTimestamp": self._stamp(job.created), "generation": 1}
        version = {"resourceVersion": str(1000 + job.role.changes(seconds))}
        return {
            **job.manifest,
            "metadata": job.manifest["metadata"] | {"namespace": NAMESPACE} | server | version,
            "spec": job.manifest["spec"] | {"suspend": state["suspend"]},
            **({"status": status} if status else {}),
        }

    def _workloads(self) -> list[Object]:
        found = []
        for job in self.jobs.values():
            conditions = job.role.workload_at(self.now() - job.created)
            if conditions is not None:
                owner = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "name": job.name}
                metadata = {"name": f"trainjob-{job.name}-{job.uid[:5]}", "ownerReferences": [owner | {"uid": job.uid}]}
                found.append({"metadata": metadata, "status": {"conditions": conditions}})
        return found

    def _pods(self, selector: str) -> list[Object]:
        return [pod for pod in self._named_pods().values() if _matches(pod["metadata"]["labels"], selector)]

    def _named_pods(self) -> dict[str, Object]:
        named = dict(self.extra_pods)
        for job in [*self.jobs.values(), *self.ending]:
            for state in self._pod_states(job):
                pod = self._pod(job, state)
                named[pod["metadata"]["name"]] = pod
        return named

    def _pod_states(self, job: Job) -> list[PodState]:
        seconds = self.now() - job.created
        if job.deleted is None:
            return job.role.pods_at(seconds)
        told = job.deleted - job.created
        alive = [pod for pod in job.role.pods_at(told) if pod.phase not in ("Succeeded", "Failed") or pod.deleting]
        states = [ending(pod, told, seconds, self.pod_grace_seconds) for pod in alive]
        return [state for state in states if state]

    def _pod(self, job: Job, state: PodState) -> Object:
        born = self._stamp(job.created + state.born)
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job.name,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "trainer.kubeflow.org/trainjob-ancestor-step": "trainer",
            "batch.kubernetes.io/job-completion-index": str(state.index),
        }
        suffix = f"{uuid.uuid5(uuid.UUID(job.uid), f'{state.index}/{state.generation}')}"
        metadata = {"name": f"{job.name}-node-0-{state.index}-{suffix[:5]}", "namespace": NAMESPACE, "uid": suffix}
        metadata |= {"labels": labels, "creationTimestamp": born}
        if state.deleting:
            metadata["deletionTimestamp"] = self._stamp(self.now())
        status: Object = {"phase": state.phase}
        if state.container:
            kind, code, reason = (*state.container.split(":"), "", "")[:3]
            since = self._stamp(job.created + state.container_since)
            told = {
                "waiting": {"reason": code},
                "running": {"startedAt": since},
                "terminated": {"exitCode": int(code) if code.isdigit() else 0, "reason": reason, "finishedAt": since},
            }
            container = {"name": "node", "restartCount": state.restarts, "state": {kind: told[kind]}, "ready": False}
            status["containerStatuses"] = [{**container, "image": "", "imageID": ""}]
        containers = [{"name": "node", "image": job.manifest["spec"]["trainer"]["image"]}]
        return {"metadata": metadata, "spec": {"containers": containers}, "status": status}

    def _log(self, pod_name: str, query: dict[str, str]) -> str:
        for job in [*self.jobs.values(), *self.ending]:
            for state in self._pod_states(job):
                if self._pod(job, state)["metadata"]["name"] == pod_name:
                    return self._log_of(job, state, pod_name, query)
        raise Refusal(404, "NotFound", f'pods "{pod_name}" not found')

    def _log_of(self, job: Job, state: PodState, pod_name: str, query: dict[str, str]) -> str:
        if state.container is None or state.container.startswith("waiting"):
            reason = (state.container or ":").partition(":")[2]
            message = f'container "node" in pod "{pod_name}" is waiting to start: {reason}'
            raise Refusal(400, "BadRequest", message)
        seconds = self.now() - job.created
        since = seconds - float(query.get("sinceSeconds", "1e9"))
        lines = [(t, text) for t, text in self.log_lines if max(state.born, since) <= t <= seconds]
        if state.container.startswith("terminated"):
            lines = [(t, text) for t, text in lines if t <= state.container_since]
        lines = lines[-int(query.get("tailLines", "1000000")) :]
        stamped = query.get("timestamps", "").lower() == "true"  # the client sends "True"
        return "".join(f"{self._stamp(job.created + t, fine=True)} {x}\n" if stamped else f"{x}\n" for t, x in lines)

    @staticmethod
    def _found(items: dict[str, Object], resource: str, name: str) -> Object:
        if name not in items:
            raise Refusal(404, "NotFound", f'{resource} "{name}" not found')
        return items[name]

    @staticmethod
    def _stamp(seconds: float, fine: bool = False) -> str:
        moment = _EPOCH + timedelta(seconds=seconds)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%f000Z" if fine else "%Y-%m-%dT%H:%M:%SZ")


def _recorded(story: str, answer: str, name_there: str, name: str) -> Refusal:
    """An answer of the real server, about another name."""
    recorded = refusal(story, answer)
    body = json.loads(json.dumps(recorded["body"]).replace(name_there, name))
    return Refusal(recorded["http"], body["reason"], body["message"], body)


def _paths(value: Any, prefix: str = "") -> set[str]:
    """Every field of an object, lists by index, empty containers left out."""
    if isinstance(value, dict):
        return {path for key, item in value.items() for path in _paths(item, f"{prefix}.{key}" if prefix else key)}
    if isinstance(value, list):
        return {path for index, item in enumerate(value) for path in _paths(item, f"{prefix}[{index}]")}
    return {prefix}


def _matches(labels: dict[str, str], selector: str) -> bool:
    for key, single, several in re.findall(r"([\w./-]+)\s*(?:=\s*([\w.-]+)|in\s*\(([^)]*)\))", selector):
        wanted = [single] if single else [item.strip() for item in several.split(",")]
        if labels.get(key) not in wanted:
            return False
    return True


class _Handler(BaseHTTPRequestHandler):
    api: KubernetesApi
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # one packet per answer: two would wait for a delayed acknowledgement
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}") if length else {}
        with self.api.lock:
            outage = self.api.outages.popleft() if self.api.outages else "no"
            try:
                if outage == "before":
                    raise Refusal(503, "ServiceUnavailable", "the API server is starting")
                if outage == "throttled":
                    raise Refusal(429, "TooManyRequests", "please try again later")
                content = self.api.handle(self.command, url.path, dict(parse_qsl(url.query)), body)
                if outage == "after":
                    raise Refusal(503, "ServiceUnavailable", "the API server went away")
                http = 201 if self.command == "POST" else 200
            except Refusal as refused:
                http, content = refused.http, refused.body
        plain = isinstance(content, str)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(http)
        self.send_header("Content-Type", "text/plain" if plain else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""
