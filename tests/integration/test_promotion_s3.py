"""Promotion over a real S3 server: conditional writes, the lease, races, and a champion deployed from a bucket."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time

import boto3
import pytest
from support.champions import MODEL, git, ledger, promoted, write_repository
from support.lineages import COMMIT, World

from understudy import cli
from understudy.errors import GateRefused, WorkdirBusy
from understudy.platform.promotion import lease
from understudy.platform.promotion.decisions import read_decisions
from understudy.platform.promotion.places import S3Place


@pytest.fixture
def place(s3_bucket):
    return S3Place(f"s3://{s3_bucket}/store/promotion/tiny")


def test_every_change_is_conditional(place):
    assert place.read("a.json") is None and place.names("") == []
    assert place.create("a.json", b"1") and not place.create("a.json", b"2")
    found = place.read("a.json")
    assert (found.data, place.replace("a.json", b"3", found.tag)) == (b"1", True)
    assert not place.replace("a.json", b"4", found.tag) and place.read("a.json").data == b"3"
    assert not place.replace("none.json", b"5", found.tag)
    assert place.create("decisions/000001.json", b"{}") and place.names("decisions/") == ["decisions/000001.json"]
    # The same bytes again, as when an answer was lost and the client sent the request twice.
    assert place.create("a.json", b"3")


def test_one_of_many_creators_wins(place):
    won = []
    threads = [threading.Thread(target=lambda n=n: place.create("x", b"%d" % n) and won.append(n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and place.read("x").data == b"%d" % won[0]


def test_the_lease_expires_by_the_servers_clock(place):
    with lease.hold(place, "first") as confirm:
        confirm()
        with pytest.raises(WorkdirBusy, match="is being changed by first"):
            with lease.hold(place, "second", wait_seconds=0.0):
                raise AssertionError
    with lease.conditional_lease(place, "killed", lifetime_seconds=1.0) as confirm:
        time.sleep(2.1)  # the server tells whole seconds
        with lease.conditional_lease(place, "next", wait_seconds=5.0):
            with pytest.raises(WorkdirBusy, match="expired and was taken over while killed worked"):
                confirm()
    with lease.hold(place, "last", wait_seconds=0.0):
        assert json.loads(place.read(lease.NAME).data)["owner"] == "last"


def test_races_over_a_bucket_have_one_winner_each(s3_bucket, tmp_path):
    for number in range(5):
        place = S3Place(f"s3://{s3_bucket}/races/{number}")
        to = dataclasses.replace(ledger(tmp_path / str(number)), place=place)
        promoted(to, "2", None)
        ended = []

        def one(version: str, to=to, ended=ended) -> None:
            try:
                promoted(to, version, "2")
                ended.append(version)
            except GateRefused:
                ended.append("refused")

        threads = [threading.Thread(target=one, args=(version,)) for version in ("4", "5")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ended)[1] == "refused" and sorted(ended)[0] in ("4", "5")
        assert to.aliases.get(MODEL, "champion") == sorted(ended)[0] and len(read_decisions(place)) == 2


@pytest.mark.slow
def test_a_champion_is_deployed_from_a_bucket_and_rolled_back(s3_bucket, tmp_path, monkeypatch, capsys):
    world = World(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(world.workdir))
    monkeypatch.setenv("UNDERSTUDY_STORAGE_URI", f"s3://{s3_bucket}/store")
    monkeypatch.setenv("UNDERSTUDY_GIT_COMMIT", COMMIT)
    repository = write_repository(tmp_path / "repository")
    champion = repository / "k8s/apps/staging/champion.yaml"

    def call(*arguments) -> int:
        command = ["model", *map(str, arguments), "--workdir", str(world.workdir)]
        monkeypatch.setattr(sys, "argv", ["understudy", *command])
        return cli.call(command)

    def promote(version) -> int:
        return call("promote", f"tiny/{version.version}", "--gate", world.gate(), "--gitops", repository)

    first = world.register("first")
    assert promote(first) == 0
    after_first = champion.read_text()
    assert f"storageUri: {first.tags['weights_uri']}\n" in after_first and 'stop: "false"' in after_first
    assert first.tags["weights_uri"].startswith(f"s3://{s3_bucket}/store/policy/")
    second = world.register("second", quality=0.9, champion=first)
    assert promote(second) == 0
    assert f"storageUri: {second.tags['weights_uri']}\n" in champion.read_text()
    assert call("verify", "tiny@champion") == 0
    assert call("rollback", "tiny", "--gitops", repository) == 0
    assert champion.read_text() == after_first
    assert git(repository, "log", "--format=%s").splitlines() == [
        "Roll back tiny 2 -> 1", "Promote tiny 1 -> 2", "Promote tiny none -> 1", "Cluster state",
    ]  # fmt: skip
    # A third version, of which one object in the bucket was changed after it was registered.
    third = world.register("third", quality=0.9, champion=first)
    key = f"store/policy/{third.tags['weights_sha256']}/model.safetensors"
    boto3.client("s3").put_object(Bucket=s3_bucket, Key=key, Body=b"\0" * 512)
    capsys.readouterr()
    assert promote(third) == 4
    assert "- integrity: policy aligned: s3://" in capsys.readouterr().err
    assert call("verify", "tiny@challenger") == 1
    assert champion.read_text() == after_first
