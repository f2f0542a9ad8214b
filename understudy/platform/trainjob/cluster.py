"""The Kubernetes calls of the launcher, each with a bounded wait, and what their refusals mean to a person.

They need what k8s/apps/components/several-nodes allows, and `get` of pods, which KFP's launcher needs anyway.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from understudy.errors import ConfigError, ServiceUnreachable
from understudy.platform.kubernetes_client import connect
from understudy.platform.trainjob.job import CONTAINER, GROUP, PLURAL, VERSION

Object = dict[str, Any]
KUEUE_VERSION = "v1beta2"
_TIMEOUT_SECONDS = (5, 30)  # to connect, to read
_KUEUE = "kueue.x-k8s.io"


class AlreadyExists(Exception):
    """There is a TrainJob of this name."""


class Cluster:
    """One namespace of a cluster, through the official client."""

    def __init__(self, namespace: str, api_client: Any = None) -> None:
        from kubernetes import client

        self.namespace = namespace
        self._custom, self._core = client.CustomObjectsApi(api_client), client.CoreV1Api(api_client)
        self._host = self._core.api_client.configuration.host

    @classmethod
    def connect(cls, namespace: str) -> Cluster:
        """Use the pod's service account, or outside of a cluster the kubeconfig.

        Raises:
            ConfigError: there is neither.
        """
        return cls(namespace, connect("No Kubernetes to launch on", "Run the step in the cluster, or set KUBECONFIG."))

    def create(self, job: Object) -> Object:
        """Create a TrainJob; unknown fields are refused, not dropped.

        Raises:
            AlreadyExists: there is one of that name.
            ConfigError: a webhook, a quota or the schema refuses it; retrying would not help.
        """
        created: Object = self._call(
            f"create TrainJob {job['metadata']['name']}",
            self._custom.create_namespaced_custom_object,
            *(GROUP, VERSION, self.namespace, PLURAL, job),
            field_validation="Strict",
        )
        return created

    def train_job(self, name: str) -> Object | None:
        """Return a TrainJob, None when there is none of that name."""
        found: Object | None = self._call(
            f"get TrainJob {name}",
            self._custom.get_namespaced_custom_object,
            *(GROUP, VERSION, self.namespace, PLURAL, name),
        )
        return found

    def delete(self, name: str, uid: str) -> None:
        """Ask for the end of exactly this TrainJob; one that is gone, or another of its name, is left alone."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            self._call(
                f"delete TrainJob {name}",
                self._custom.delete_namespaced_custom_object,
                *(GROUP, VERSION, self.namespace, PLURAL, name),
                body=body,
            )
        except AlreadyExists:  # 409: another uid
            return

    def pods(self, name: str) -> list[Object]:
        """Return the pods of a TrainJob, those that are ending included."""
        listed = self._call(
            f"list the pods of TrainJob {name}",
            self._core.list_namespaced_pod,
            self.namespace,
            label_selector=f"jobset.sigs.k8s.io/jobset-name={name}",
            _preload_content=False,
        )
        items: list[Object] = json.loads(listed.data)["items"] if listed else []
        return items

    def workload(self, uid: str) -> Object | None:
        """Return Kueue's Workload of a TrainJob; None without a queue, or before Kueue has seen the job."""
        listed = self._call(
            "list Workloads",
            self._custom.list_namespaced_custom_object,
            *(_KUEUE, KUEUE_VERSION, self.namespace, "workloads"),
        )
        for item in (listed or {}).get("items", []):
            if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", [])):
                found: Object = item
                return found
        return None

    def runtime(self, name: str) -> Object | None:
        """Return a ClusterTrainingRuntime."""
        return self._cluster_object(GROUP, VERSION, "clustertrainingruntimes", name)

    def priority_class(self, name: str) -> Object | None:
        """Return a WorkloadPriorityClass."""
        return self._cluster_object(_KUEUE, KUEUE_VERSION, "workloadpriorityclasses", name)

    def local_queue(self, name: str) -> Object | None:
        """Return a LocalQueue of the namespace."""
        found: Object | None = self._call(
            f"get LocalQueue {name}",
            self._custom.get_namespaced_custom_object,
            *(_KUEUE, KUEUE_VERSION, self.namespace, "localqueues", name),
        )
        return found

    def owner_of_pod(self, name: str) -> Object | None:
        """Return a reference to what controls a pod (the run's Workflow), as an owner that blocks nothing."""
        pod = self._call(
            f"get pod {name}", self._core.read_namespaced_pod, name, self.namespace, _preload_content=False
        )
        owners = json.loads(pod.data)["metadata"].get("ownerReferences", []) if pod else []
        for owner in owners:
            if owner.get("controller"):
                return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
        return None

    def log(self, pod: str, **options: Any) -> list[str]:
        """Return lines of a pod's log; none while its container has not started, or once the pod is gone."""
        try:
            answer = self._call(
                f"read the log of pod {pod}",
                self._core.read_namespaced_pod_log,
                *(pod, self.namespace),
                container=CONTAINER,
                _preload_content=False,
                **options,
            )
        except _BadRequest:
            return []
        # Not splitlines: a progress bar's carriage returns are within one line, which has one time.
        return answer.data.decode("utf-8", "replace").removesuffix("\n").split("\n") if answer and answer.data else []

    def _cluster_object(self, group: str, version: str, plural: str, name: str) -> Object | None:
        found: Object | None = self._call(
            f"get {plural}/{name}", self._custom.get_cluster_custom_object, *(group, version, plural, name)
        )
        return found

    def _call(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make one call; 404 is None."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return method(*arguments, _request_timeout=_TIMEOUT_SECONDS, **options)
        except ApiException as error:
            if error.status == 404:
                return None
            if error.status == 409 and what.startswith("create") and _field(error, "reason") == "Conflict":
                # Two writers of a ResourceQuota, for example: nothing was created, and asking again helps.
                raise self._refusal(what, 503, _message(error)) from error
            raise self._refusal(what, error.status, _message(error)) from error
        except HTTPError as error:
            raise ServiceUnreachable(
                f"Kubernetes at {self._host} does not answer: cannot {what} ({type(error).__name__})."
            ) from error

    def _refusal(self, what: str, status: int | None, message: str) -> Exception:
        if status == 409:
            return AlreadyExists(message)
        if status in (None, 0, 429) or status >= 500:
            return ServiceUnreachable(f"Kubernetes at {self._host} cannot {what} now ({status}): {message}")
        if what.startswith("create"):
            return ConfigError(
                f"The cluster refuses to {what} in namespace {self.namespace} ({status}): {message}. "
                "Correct platform: in params.yaml or what the message names in k8s/, and compile the pipeline again."
            )
        if status == 400:
            return _BadRequest(message)
        return ConfigError(
            f"This pod may not {what} in namespace {self.namespace} ({status}): {message}. It needs the service "
            "account understudy-runner, and the environment the component several-nodes (k8s/apps/components)."
        )


class _BadRequest(ConfigError):
    """The server does not take the request, for example a log before the container runs."""


def _message(error: Any) -> str:
    return _field(error, "message") or str(error.reason)


def _field(error: Any, name: str) -> str:
    """Return a field of the Status that the server answered with, "" when it is none (a proxy's page, for example)."""
    try:
        status: Mapping[str, Any] = json.loads(error.body)
        return str(status[name])
    except (TypeError, ValueError, KeyError):
        return ""
