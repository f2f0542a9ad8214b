"""What schedules ask of KFP: the real client's API objects, with a timeout on each call and errors for people.

kfp.Client's own methods wait for ever, print links, and delete a recurring run together with the runs it has started.
Its API objects follow redirects and make None of every field that an answer lacks, so that the login page of a proxy
whose session has ended reads as "there is nothing": here only JSON from the address that was asked is an answer.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from understudy.errors import ConfigError, ServiceUnreachable
from understudy.platform.kfp_token import TOKEN_VARIABLE, projected_token
from understudy.platform.schedules_spec import HASH_CHARS, PREFIX
from understudy.platform.storage import without_secrets

ENDPOINT_VARIABLE = "KFP_ENDPOINT"
EXPERIMENT = "understudy-schedules"
OWNER = "understudy schedule"  # in the description of every recurring run that we made
_LOG_IN = (
    f"If the session or the token has ended, log in again: a new token goes into --token-file or {TOKEN_VARIABLE}."
)
_TIMEOUT_SECONDS = (10.0, 60.0)  # to connect, to read; the client takes a lone float for no timeout at all
_RETRIES = 3  # of what did not reach the server, and of a read: urllib3's own number
_PAGE_SIZE = 200


@dataclass(frozen=True)
class RecurringRun:
    """A recurring run as KFP has it; `ours` when its description says that a reconciler made it."""

    id: str
    name: str
    enabled: bool
    cron: str
    version_id: str
    account: str
    experiment_id: str
    max_concurrency: int
    no_catchup: bool
    created_at: str
    ours: bool


class Kfp:
    """One KFP API server and one namespace of it."""

    def __init__(self, endpoint: str | None, namespace: str, token: str | None = None) -> None:
        self.endpoint = endpoint or os.environ.get(ENDPOINT_VARIABLE, "")
        self.namespace = namespace
        self._token = token
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"The KFP endpoint is {without_secrets(self.endpoint)!r}; give http(s)://HOST:PORT with --endpoint or "
                f"{ENDPOINT_VARIABLE}."
            )

    @cached_property
    def client(self) -> Any:
        """The real client, with the given token, else with the projected one of a service account if there is one."""
        from urllib3 import Retry

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "only works with v2.0.0-beta.2 and later"
            import kfp

            client = kfp.Client(
                host=self.endpoint,
                namespace=self.namespace,
                existing_token=self._token,
                credentials=None if self._token else projected_token(),
            )
        pool = client.runs.api_client.rest_client.pool_manager
        pool.connection_pool_kw["retries"] = Retry(_RETRIES, redirect=False)
        return client

    def call(self, what: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a generated API method and return its answer, which is KFP's and no other server's.

        Raises:
            ConfigError: KFP refuses the request, its own words are in the message; or somebody else answers.
            ServiceUnreachable: it does not answer, or fails.
        """
        answer = self.exchange(what, method, *arguments, **named)
        response = self.client.runs.api_client.last_response
        kind = str(response.getheader("Content-Type") or "no type").partition(";")[0]
        if kind != "application/json" or not response.data.lstrip().startswith("{"):
            raise ConfigError(
                f"{without_secrets(self.endpoint)} answers with {kind} when asked to {what}, not with KFP's JSON; it "
                f"was not done. {_LOG_IN} Otherwise check --endpoint."
            )
        return answer

    def exchange(self, what: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a method of the generated client, whatever type its answer has.

        Raises:
            ConfigError: the request is refused, or sent to another address, which is not followed.
            ServiceUnreachable: there is no answer, or a failure.
        """
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return method(*arguments, **named, _request_timeout=_TIMEOUT_SECONDS)
        except ApiException as error:
            raise self._refusal(what, error) from error
        except (HTTPError, OSError) as error:
            raise ServiceUnreachable(
                f"KFP at {without_secrets(self.endpoint)} does not answer ({type(error).__name__}) to: {what}. Check "
                "--endpoint and the server, then run the same command again; it goes on from what was done."
            ) from error

    def _refusal(self, what: str, error: Any) -> ConfigError | ServiceUnreachable:
        where, said, status = without_secrets(self.endpoint), _said(error), error.status or 0
        if 300 <= status < 400:
            target = urlsplit(str((error.headers or {}).get("Location", "")))._replace(query="", fragment="").geturl()
            return ConfigError(
                f"{where} sends elsewhere (status {status}, to {without_secrets(target)!r}) when asked to {what}; it "
                f"was not done. {_LOG_IN} Otherwise check --endpoint."
            )
        if status in (401, 403):
            return ConfigError(
                f"KFP at {where} does not let this account {what} in namespace {self.namespace!r}: {said} {_LOG_IN} "
                "In a pod, check the account's Role (k8s/apps/base/platform/schedules.yaml) and the token's audience "
                "pipelines.kubeflow.org."
            )
        if 400 <= status < 500:
            return ConfigError(f"KFP at {where} refuses to {what}: {said}")
        return ServiceUnreachable(
            f"KFP at {where} failed to {what} (status {error.status}): {said} Run the same command again; it goes "
            "on from what was done."
        )

    def pages(self, what: str, method: Callable[..., Any], key: str, **named: Any) -> Iterator[Any]:
        """Yield every item of a list, over all pages."""
        token = ""
        while True:
            page = self.call(what, method, page_token=token, page_size=_PAGE_SIZE, **named)
            yield from getattr(page, key) or ()
            token = page.next_page_token or ""
            if not token:
                return

    def recurring_runs(self, prefix: str) -> list[RecurringRun]:
        """Return the namespace's recurring runs whose name starts so, oldest first."""
        method = self.client.recurring_runs.recurring_run_service_list_recurring_runs
        items = self.pages("list recurring runs", method, "recurring_runs", namespace=self.namespace)
        return [_recurring_run(item) for item in items if item.display_name.startswith(prefix)]

    def recurring_runs_of(self, schedule: str) -> list[RecurringRun]:
        """Return the recurring runs that `apply` made for one schedule, and none of `weekly-x` for `weekly`."""
        name = re.compile(rf"{PREFIX}{re.escape(schedule)}-[0-9a-f]{{{HASH_CHARS}}}")
        return [run for run in self.recurring_runs(f"{PREFIX}{schedule}-") if run.ours and name.fullmatch(run.name)]

    def versions(self, pipeline: str) -> dict[str, tuple[str, str]]:
        """Return {version name: (pipeline id, version id)} of a pipeline; empty if there is none of that name."""
        service = self.client.pipelines
        listed = self.pages(
            "list pipelines", service.pipeline_service_list_pipelines, "pipelines", namespace=self.namespace
        )
        ids = [item.pipeline_id for item in listed if (item.name or item.display_name) == pipeline]
        found: dict[str, tuple[str, str]] = {}
        for pipeline_id in ids:
            method = service.pipeline_service_list_pipeline_versions
            for item in self.pages("list versions", method, "pipeline_versions", pipeline_id=pipeline_id):
                found[item.name or item.display_name] = (pipeline_id, item.pipeline_version_id)
        return found

    def made(self, what: str, key: str, method: Callable[..., Any], **named: Any) -> Any:
        """Call a method that makes something; the answer has its id under `key`.

        Raises:
            ConfigError: as `call` does.
            ServiceUnreachable: as `call` does, and where the answer has no id.
        """
        answer = self.call(what, method, **named)
        if not getattr(answer, key):
            raise ServiceUnreachable(
                f"{without_secrets(self.endpoint)} was asked to {what} and answers without its {key}, so it is unknown "
                f"whether it was done. {_LOG_IN} Otherwise check that --endpoint is KFP's API server."
            )
        return answer

    def experiment_id(self, name: str = EXPERIMENT) -> str | None:
        """Return the id of an experiment of the namespace, None if there is none of that name."""
        method = self.client.experiments.experiment_service_list_experiments
        listed = self.pages("list experiments", method, "experiments", namespace=self.namespace)
        return next((str(item.experiment_id) for item in listed if item.display_name == name), None)

    def experiment(self, name: str = EXPERIMENT) -> str:
        """Return the id of an experiment of the namespace, made if there is none of that name."""
        from kfp_server_api import V2beta1Experiment

        if found := self.experiment_id(name):
            return found
        body = V2beta1Experiment(display_name=name, namespace=self.namespace)
        method = self.client.experiments.experiment_service_create_experiment
        return str(self.made("create an experiment", "experiment_id", method, experiment=body).experiment_id)

    def create(
        self,
        name: str,
        cron: str,
        ids: tuple[str, str],
        arguments: Mapping[str, Any],
        enabled: bool,
        note: str,
        account: str,
    ) -> str:
        """Create a recurring run of one pipeline version, one at a time and without catching up; return its id.

        `account` is the service account of its runs' pods; without one KFP takes its own, which may do nothing of ours.
        """
        import kfp_server_api as api

        body = api.V2beta1RecurringRun(
            display_name=name,
            description=f"{OWNER}: {note}",
            experiment_id=self.experiment(),
            service_account=account,
            mode=api.RecurringRunMode.ENABLE if enabled else api.RecurringRunMode.DISABLE,
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            max_concurrency="1",
            no_catchup=True,
            pipeline_version_reference=api.V2beta1PipelineVersionReference(
                pipeline_id=ids[0], pipeline_version_id=ids[1]
            ),
            runtime_config=api.V2beta1RuntimeConfig(parameters=dict(arguments)),
        )
        method = self.client.recurring_runs.recurring_run_service_create_recurring_run
        made = self.made(f"create the recurring run {name}", "recurring_run_id", method, recurring_run=body)
        return str(made.recurring_run_id)

    def set_enabled(self, recurring_run_id: str, enabled: bool) -> None:
        """Enable or disable a recurring run: all that KFP can change about one."""
        service = self.client.recurring_runs
        if enabled:
            self.call("enable a recurring run", service.recurring_run_service_enable_recurring_run, recurring_run_id)
        else:
            self.call("disable a recurring run", service.recurring_run_service_disable_recurring_run, recurring_run_id)

    def delete(self, recurring_run_id: str) -> None:
        """Delete a recurring run, and let the runs that it has started go on to their end."""
        method = self.client.recurring_runs.recurring_run_service_delete_recurring_run
        self.call("delete a recurring run", method, recurring_run_id, propagation_policy="ORPHAN")

    def runs(self, sort_by: str = "created_at desc") -> Iterator[Any]:
        """Yield the runs of the schedules' experiment, newest first."""
        experiment_id = self.experiment_id()
        if experiment_id is not None:
            method = self.client.runs.run_service_list_runs
            yield from self.pages("list runs", method, "runs", experiment_id=experiment_id, sort_by=sort_by)

    def terminate(self, run_id: str) -> None:
        """Ask a run to end; its pods get SIGTERM and save."""
        self.call(f"terminate run {run_id}", self.client.runs.run_service_terminate_run, run_id)


def _recurring_run(item: Any) -> RecurringRun:
    cron = item.trigger.cron_schedule if item.trigger else None
    reference = item.pipeline_version_reference
    return RecurringRun(
        id=str(item.recurring_run_id),
        name=str(item.display_name),
        enabled=item.mode == "ENABLE",
        cron=str(cron.cron) if cron else "",
        version_id=str(reference.pipeline_version_id) if reference else "",
        account=str(item.service_account or ""),
        experiment_id=str(item.experiment_id or ""),
        max_concurrency=int(item.max_concurrency or 0),
        no_catchup=bool(item.no_catchup),
        created_at=str(item.created_at),
        ours=str(item.description or "").startswith(f"{OWNER}:"),
    )


def _said(error: Any) -> str:
    """Return the message that KFP means for the caller, else what it sent."""
    try:
        body = json.loads(error.body)
        details = [detail["message"] for detail in body.get("details", []) if detail.get("message")]
        return str(details[0] if details else body["message"]).rstrip(".") + "."
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{str(error.reason or error.body)[:200]}."
