"""The Lease through the official client: one holder, takeover without clocks, and promotions that race."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest
from support.champions import MODEL, ledger, promoted
from support.lease_api import LeaseApi

from understudy.errors import ConfigError, GateRefused, ServiceUnreachable, WorkdirBusy
from understudy.platform.promotion import kubernetes_lease
from understudy.platform.promotion import lease as leases
from understudy.platform.promotion.decisions import read_decisions
from understudy.platform.promotion.kubernetes_lease import KubernetesLease, lease_name
from understudy.platform.promotion.places import LocalPlace


@pytest.fixture
def api():
    with LeaseApi() as server:
        yield server


def lease(api, owner: str, lifetime_seconds: float = 60.0) -> KubernetesLease:
    return KubernetesLease("understudy", "promotion", owner, lifetime_seconds, api.client())


def test_one_holds_it_and_the_others_learn_who(api):
    with lease(api, "ann@laptop").hold(0.0) as held:
        held.renew()
        spec = api.leases["promotion"]["spec"]
        assert spec["holderIdentity"].startswith("ann@laptop ") and spec["leaseDurationSeconds"] == 60
        with pytest.raises(
            WorkdirBusy, match=r"changed by ann@laptop; Lease understudy/promotion was not free within 0"
        ):
            with lease(api, "ben").hold(0.0):
                raise AssertionError
    assert api.leases["promotion"]["spec"]["holderIdentity"] == ""
    with lease(api, "ben").hold(0.0):
        assert api.leases["promotion"]["spec"]["leaseTransitions"] == 1


def test_a_lease_that_nobody_renews_is_taken_over_and_its_holder_stops(api):
    with lease(api, "killed", lifetime_seconds=1.0).hold(0.0) as killed:
        # Whatever its times say, by clocks that are hours apart: only that it does not change counts.
        api.leases["promotion"]["spec"]["renewTime"] = "2099-01-01T00:00:00.000000Z"
        with lease(api, "next").hold(30.0):
            with pytest.raises(WorkdirBusy, match="expired and was taken over while killed worked; nothing more"):
                killed.renew()
            assert api.leases["promotion"]["spec"]["holderIdentity"].startswith("next ")
    # The one that lost it does not give away what is another's.
    assert [holder.partition(" ")[0] for holder in api.history] == ["killed", "next", ""]


def test_a_lease_that_is_renewed_is_not_taken_over(api):
    stop = threading.Event()
    with lease(api, "busy", lifetime_seconds=1.0).hold(0.0) as busy:

        def renewing() -> None:
            while not stop.wait(0.1):
                busy.renew()

        thread = threading.Thread(target=renewing)
        thread.start()
        try:
            with pytest.raises(WorkdirBusy, match="changed by busy"):
                with lease(api, "next").hold(2.5):
                    raise AssertionError
        finally:
            stop.set()
            thread.join()


def test_an_answer_that_was_lost_is_no_takeover(api):
    with lease(api, "ann").hold(0.0) as held:
        api.handle("PUT", "promotion", api.leases["promotion"] | {"metadata": {}})  # as the lost write would have
        held.renew()
        held.renew()


@pytest.mark.parametrize("status", [403, 401])
def test_an_account_that_may_not_is_told_what_to_allow(api, status):
    api.status = status
    with pytest.raises(ConfigError, match=f"does not let this account get Lease .*status {status}.*get, create and"):
        with lease(api, "ann").hold(0.0):
            raise AssertionError


def test_a_server_that_is_gone_or_ill(api):
    api.status = 500
    with pytest.raises(ServiceUnreachable, match="could not get Lease understudy/promotion: status 500"):
        with lease(api, "ann").hold(0.0):
            raise AssertionError
    gone = lease(api, "ann")
    api.__exit__()
    with pytest.raises(ServiceUnreachable, match="did not answer to get Lease"):
        with gone.hold(0.0):
            raise AssertionError
    api.__enter__()


def test_races_have_one_winner_each_and_the_place_is_leased_too(api, tmp_path, monkeypatch):
    monkeypatch.setenv(kubernetes_lease.NAMESPACE, "understudy")
    monkeypatch.setattr(kubernetes_lease, "connect", lambda *_: api.client())
    promoted(ledger(tmp_path), "2", None)
    ready, ended = threading.Barrier(2), []

    def one(version: str) -> None:
        mine = ledger(tmp_path)
        ready.wait()
        try:
            promoted(mine, version, "2")
            ended.append(version)
        except GateRefused:
            ended.append("refused")

    threads = [threading.Thread(target=one, args=(version,)) for version in ("4", "5")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended)[1] == "refused" and ledger(tmp_path).aliases.get(MODEL, "champion") == sorted(ended)[0]
    assert len(read_decisions(ledger(tmp_path).place)) == 2
    assert (tmp_path / "promotion/lease.json").exists() and list(api.leases) == [
        lease_name(str(tmp_path / "promotion"))
    ]
    # Between two holders nobody writes but the one that has it.
    holders = [holder for holder in api.history]
    runs = [holder for at, holder in enumerate(holders) if at == 0 or holders[at - 1] != holder]
    assert runs[1::2] == [""] * 3 and len(set(runs[::2])) == 3


@pytest.mark.parametrize("uri", ["s3://b/store/promotion/m%C3%B6del", "/w/promotion/" + "x" * 90, "/w/promotion/---"])
def test_the_leases_name_is_a_label(uri):
    name = lease_name(uri)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 63
    assert lease_name(uri + "2") != name


def test_time_is_by_the_monotonic_clock(api, monkeypatch):
    """A wall clock that jumps an hour ahead frees nothing."""
    with lease(api, "ann").hold(0.0):
        monkeypatch.setattr(time, "time", lambda: 4e9)
        with pytest.raises(WorkdirBusy):
            with lease(api, "ben").hold(0.0):
                raise AssertionError


@pytest.mark.parametrize("where", ["bucket", "kubernetes"])
def test_evidence_that_takes_longer_than_the_lease_lives_does_not_lose_it(api, tmp_path, monkeypatch, where):
    """Verifying large weights takes minutes; a thread renews the lease meanwhile, and ends with it."""
    monkeypatch.setattr(leases, "LIFETIME_SECONDS", 1.0)
    if where == "kubernetes":
        monkeypatch.setenv(kubernetes_lease.NAMESPACE, "understudy")
        monkeypatch.setattr(kubernetes_lease, "connect", lambda *_: api.client())
    else:
        monkeypatch.setattr(leases, "LocalPlace", type("Other", (), {}))
    place = LocalPlace(tmp_path)
    with leases.hold(place, "slow") as confirm:
        with pytest.raises(WorkdirBusy, match="is being changed by slow"):
            with leases.hold(place, "next", wait_seconds=3.0):
                raise AssertionError
        confirm()
    time.sleep(1.0)
    # Given back, and not taken again by the thread.
    kept = json.loads(place.read(leases.NAME).data or b"{}")
    assert kept == {} and (api.history[-1:] in ([], [""]))
    with leases.hold(place, "next", wait_seconds=0.0):
        pass
