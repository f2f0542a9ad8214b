"""A Kubernetes Lease around a promotion, for whoever names its namespace in UNDERSTUDY_LEASE_NAMESPACE.

It is taken before the lease of the place, which all others take, and never instead of it. As client-go's leader
election does, a lease counts as given up when it was seen not to change for its whole duration, by the clock of the
one who waits: clocks that differ between machines do no harm.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from understudy.errors import ConfigError, ServiceUnreachable, UnderstudyError, WorkdirBusy
from understudy.platform.kubernetes_client import connect

NAMESPACE = "UNDERSTUDY_LEASE_NAMESPACE"
_POLL_SECONDS = 0.25
_TIMEOUT_SECONDS = (5, 30)  # to connect, to read


def lease_name(place_uri: str) -> str:
    """Return the name of the Lease for a place: readable, unique, a DNS label."""
    model = re.sub(r"[^a-z0-9]+", "-", place_uri.rpartition("/")[2].lower()).strip("-")[:28].strip("-")
    digest = hashlib.sha256(place_uri.encode()).hexdigest()[:12]
    return "-".join(filter(None, ("understudy-promotion", model, digest)))


class KubernetesLease:
    """One Lease object and the identity that would hold it.

    Attributes:
        namespace: of the Lease.
        name: of the Lease.
        owner: told to those who wait.
        lifetime_seconds: after which a lease that nobody renews may be taken over.
    """

    def __init__(self, namespace: str, name: str, owner: str, lifetime_seconds: float, api_client: Any = None) -> None:
        from kubernetes import client

        self.namespace, self.name, self.lifetime_seconds = namespace, name, lifetime_seconds
        self.identity = f"{owner} {secrets.token_hex(8)}"
        self._api = client.CoordinationV1Api(
            api_client or connect(f"{NAMESPACE} is set and there is no cluster", "Unset it, or set KUBECONFIG.")
        )
        self._held: Any = None
        self._seen: tuple[str, float] | None = None

    @contextmanager
    def hold(self, wait_seconds: float) -> Iterator[KubernetesLease]:
        """Hold the Lease until the block ends.

        Raises:
            WorkdirBusy: another holds it for longer than `wait_seconds`; names the holder.
            ConfigError: the account may not, or there is no cluster.
            ServiceUnreachable: the API server does not answer.
        """
        deadline = time.monotonic() + wait_seconds
        while not self._take():
            if time.monotonic() >= deadline:
                raise WorkdirBusy(
                    f"The champion is being changed by {self._holder()}; Lease {self.namespace}/{self.name} was not "
                    f"free within {wait_seconds:g} s. Wait for it and run the same command again."
                )
            time.sleep(_POLL_SECONDS)
        try:
            yield self
        finally:
            with suppress(UnderstudyError):  # it expires by itself
                self._write(self._held, holder="", seconds=1)

    def renew(self) -> None:
        """Renew the Lease.

        Raises:
            WorkdirBusy: another has taken it over meanwhile.
        """
        if self._write(self._held, self.identity, self.lifetime_seconds):
            return
        found = self._read()
        # A write whose answer was lost changed the version, not the holder.
        if found is None or found.spec.holder_identity != self.identity:
            owner = self.identity.rpartition(" ")[0]
            raise WorkdirBusy(
                f"Lease {self.namespace}/{self.name} expired and was taken over while {owner} worked; nothing more was "
                "changed. Run the same command again: what was begun is finished or undone first."
            )
        self._held = found

    def _take(self) -> bool:
        found = self._read()
        if found is None:
            return self._create()
        version = found.metadata.resource_version
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, time.monotonic())
        duration = float(found.spec.lease_duration_seconds or 0)
        given_up = time.monotonic() - self._seen[1] > duration
        free = not found.spec.holder_identity or given_up
        return free and self._write(found, self.identity, self.lifetime_seconds)

    def _create(self) -> bool:
        from kubernetes import client

        body = client.V1Lease(
            metadata=client.V1ObjectMeta(name=self.name, labels={"app.kubernetes.io/part-of": "understudy"}),
            spec=self._spec(self.identity, self.lifetime_seconds, 0),
        )
        self._held = self._call("create", self._api.create_namespaced_lease, self.namespace, body)
        return self._held is not None

    def _write(self, lease: Any, holder: str, seconds: float) -> bool:
        """Replace the Lease as it was read; False where it is another by now."""
        transitions = int(lease.spec.lease_transitions or 0) + (lease.spec.holder_identity != holder != "")
        lease.spec = self._spec(holder, seconds, transitions)
        written = self._call("update", self._api.replace_namespaced_lease, self.name, self.namespace, lease)
        self._held = written or self._held
        return written is not None

    def _read(self) -> Any:
        return self._call("get", self._api.read_namespaced_lease, self.name, self.namespace)

    def _holder(self) -> str:
        found = self._read()
        holder = found.spec.holder_identity if found is not None else None
        return str(holder).rpartition(" ")[0] if holder else "another"

    def _spec(self, holder: str, seconds: float, transitions: int) -> Any:
        from kubernetes import client

        now = datetime.now(UTC)
        return client.V1LeaseSpec(
            holder_identity=holder,
            lease_duration_seconds=max(1, round(seconds)),
            acquire_time=now,
            renew_time=now,
            lease_transitions=transitions,
        )

    def _call(self, verb: str, method: Any, *arguments: Any) -> Any:
        """Return what the API answers; None for "not found" and "another was faster"."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        where = f"Lease {self.namespace}/{self.name}"
        try:
            return method(*arguments, _request_timeout=_TIMEOUT_SECONDS)
        except ApiException as error:
            if error.status == 409 or (error.status == 404 and verb != "create"):
                return None
            if error.status in (401, 403, 404, 422):
                raise ConfigError(
                    f"Kubernetes does not let this account {verb} {where} (status {error.status}). Allow get, create "
                    "and update of leases.coordination.k8s.io there (k8s/apps/components/promotion-lease), or unset "
                    f"{NAMESPACE}."
                ) from error
            raise ServiceUnreachable(f"Kubernetes could not {verb} {where}: status {error.status}.") from error
        except HTTPError as error:
            raise ServiceUnreachable(f"Kubernetes did not answer to {verb} {where}: {type(error).__name__}.") from error
