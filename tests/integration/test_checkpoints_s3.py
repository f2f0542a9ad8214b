"""Checkpoints that outlive their pod, against a real S3 server: the working directory goes, the training goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from understudy.errors import ServiceUnreachable
from understudy.platform.checkpoint_bucket import BucketCheckpoints
from understudy.platform.object_storage import Location
from understudy.training.checkpoint import Checkpoints

CHAIN = Path(__file__).parents[1] / "e2e" / "chain.py"
ROOT = "store/checkpoints/align-abc"


class Pod:
    """A working directory with checkpoints of one lineage, and what was said in it."""

    def __init__(self, bucket: str, folder: Path) -> None:
        self.notes: list[str] = []
        self.folder = folder
        self.mirror = BucketCheckpoints(Location(bucket, ROOT), self.notes.append)
        self.checkpoints = Checkpoints(folder, mirror=self.mirror)

    def save(self, *steps: int) -> None:
        for step in steps:
            self.checkpoints.save(step, {"w": torch.full((3,), float(step))}, {"round": step})

    def found(self) -> tuple[int, list[float], Any] | None:
        latest = self.checkpoints.latest()
        return None if latest is None else (latest.step, latest.tensors["w"].tolist(), latest.state["round"])


@pytest.fixture
def pods(s3_bucket, tmp_path):
    """Make new pods on the same bucket."""
    made: list[Pod] = []

    def make() -> Pod:
        made.append(Pod(s3_bucket, tmp_path / f"pod{len(made)}"))
        return made[-1]

    return make


def keys(bucket: str) -> dict[str, int]:
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"].removeprefix(f"{ROOT}/"): item["Size"] for item in listed}


def put(bucket: str, path: str, content: bytes) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{ROOT}/{path}", Body=content)


def content(bucket: str, path: str) -> bytes:
    return bytes(boto3.client("s3").get_object(Bucket=bucket, Key=f"{ROOT}/{path}")["Body"].read())


def test_a_new_pod_goes_on_where_the_last_one_ended(pods):
    assert pods().found() is None
    pods().save(1, 2, 3)
    second = pods()
    assert second.found() == (3, [3.0, 3.0, 3.0], 3)
    assert "Going on from the checkpoint of step 3 in s3://" in second.notes[0]
    second.save(4)
    assert pods().found() == (4, [4.0, 4.0, 4.0], 4)


def test_two_places_take_turns_and_nothing_piles_up(pods, s3_bucket):
    pods().save(1, 2, 3, 4, 5)
    assert sorted(keys(s3_bucket)) == [
        f"{place}/{name}"
        for place in "ab"
        for name in ("manifest.json", "state.json", "step.json", "tensors.safetensors")
    ]
    assert {content(s3_bucket, f"{place}/step.json") for place in "ab"} == {b'{"step": 4}', b'{"step": 5}'}
    pods().save(6)  # a pod that never read takes the older place, too
    assert {content(s3_bucket, f"{place}/step.json") for place in "ab"} == {b'{"step": 5}', b'{"step": 6}'}


def test_what_is_on_the_disk_and_newer_is_taken(pods, s3_bucket):
    pod = pods()
    pod.save(1, 2)
    place = next(place for place in "ab" if content(s3_bucket, f"{place}/step.json") == b'{"step": 2}')
    put(s3_bucket, f"{place}/step.json", b"{}")
    assert pod.found() == (2, [2.0, 2.0, 2.0], 2)
    assert pod.notes == []


@pytest.mark.parametrize("damage", ["unmarked", "flipped", "gone", "mixed", "no json"])
def test_a_copy_that_is_not_whole_is_left_out(pods, s3_bucket, damage):
    pods().save(1, 2)
    newest = next(place for place in "ab" if content(s3_bucket, f"{place}/step.json") == b'{"step": 2}')
    tensors = content(s3_bucket, f"{newest}/tensors.safetensors")
    if damage == "unmarked":
        put(s3_bucket, f"{newest}/step.json", b"{}")
    elif damage == "flipped":
        put(s3_bucket, f"{newest}/tensors.safetensors", tensors[:-1] + bytes([tensors[-1] ^ 1]))
    elif damage == "gone":
        boto3.client("s3").delete_object(Bucket=s3_bucket, Key=f"{ROOT}/{newest}/state.json")
    elif damage == "mixed":  # two attempts overlapped
        other = "b" if newest == "a" else "a"
        put(s3_bucket, f"{newest}/manifest.json", content(s3_bucket, f"{other}/manifest.json"))
    else:
        put(s3_bucket, f"{newest}/step.json", b"\xff not json")
    pod = pods()
    assert pod.found() == (1, [1.0, 1.0, 1.0], 1)
    told = damage in ("flipped", "gone", "mixed")
    assert ("the checkpoint of step 2" in pod.notes[0] and "is damaged and is left out" in pod.notes[0]) == told
    assert [path.name for path in pod.folder.iterdir()] == ["step-00000001"]


def test_the_next_copy_goes_where_the_damaged_one_is(pods, s3_bucket, monkeypatch):
    pods().save(1, 2)
    newest = next(place for place in "ab" if content(s3_bucket, f"{place}/step.json") == b'{"step": 2}')
    put(s3_bucket, f"{newest}/tensors.safetensors", b"damaged")
    pod = pods()
    assert pod.found() == (1, [1.0, 1.0, 1.0], 1)
    monkeypatch.setattr(BucketCheckpoints, "_write", _cut_off_after_the_first(BucketCheckpoints._write))
    with pytest.raises(KeyboardInterrupt):
        pod.save(3)
    assert pods().found() == (1, [1.0, 1.0, 1.0], 1)  # one place is whole at any moment


def _cut_off_after_the_first(write):
    done = []

    def wrapped(self, client, path, content):
        if done:
            raise KeyboardInterrupt  # as a kill would
        done.append(write(self, client, path, content))

    return wrapped


def test_a_copy_that_failed_is_made_when_the_step_is_saved_again(pods, monkeypatch):
    pod, right = pods(), os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    pod.save(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", right)
    pod.save(1)
    assert pods().found() == (1, [1.0, 1.0, 1.0], 1)


def test_a_download_that_breaks_off_is_a_service_that_does_not_answer(pods, monkeypatch):
    from boto3.exceptions import RetriesExceededError

    pods().save(1)

    def breaks(*_: object) -> None:
        raise RetriesExceededError(ConnectionError("reset"))

    monkeypatch.setattr("understudy.platform.checkpoint_bucket.download_object", breaks)
    with pytest.raises(ServiceUnreachable, match=r"does not answer \(RetriesExceededError\)"):
        pods().found()


def test_once_done_nothing_is_found_and_next_to_nothing_is_kept(pods, s3_bucket):
    pod = pods()
    pod.save(1, 2)
    pod.checkpoints.clear()
    assert not pod.folder.exists() and pods().found() is None
    assert keys(s3_bucket)["a/tensors.safetensors"] == keys(s3_bucket)["b/tensors.safetensors"] == 0
    pods().save(3, 4)
    put(s3_bucket, "a/step.json", b"{}")  # a copy that was cut off
    other = pods()
    other.checkpoints.clear()
    assert keys(s3_bucket)["a/tensors.safetensors"] == 0
    pods().save(1)  # the same lineage once more, from its beginning
    assert pods().found() == (1, [1.0, 1.0, 1.0], 1)


def test_a_bucket_that_does_not_answer_costs_the_copy_and_not_the_training(pods, monkeypatch):
    pod = pods()
    pod.save(1)
    right = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    pod.save(2)
    assert "Warning: the checkpoint of step 2 is on this machine alone. Object storage" in pod.notes[-1]
    with pytest.raises(ServiceUnreachable, match="does not answer"):
        pods().found()  # which may not begin anew
    monkeypatch.setenv("AWS_ENDPOINT_URL", right)
    pod.save(3)
    assert pods().found() == (3, [3.0, 3.0, 3.0], 3)


def start(workdir: Path, storage: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "UNDERSTUDY_WORKDIR": str(workdir),
        "UNDERSTUDY_STORAGE_URI": storage,
        "UNDERSTUDY_DEVICE": "cpu",
        "UNDERSTUDY_THREADS": "1",
        "PYTHONPATH": str(CHAIN.parents[1]),
    }
    for name in ("UNDERSTUDY_RUN_DIR", "MLFLOW_TRACKING_URI", "UNDERSTUDY_RUNNER_PID"):
        environment.pop(name, None)
    command = [sys.executable, str(CHAIN), "sft.epochs=8", "align.num_rounds=12"]  # long enough to be met
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(workdir: Path, storage: str) -> tuple[dict[str, str], str]:
    process = start(workdir, storage)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-2000:]
    return dict(json.loads(out.splitlines()[-1])), out


def end_in(step: str, number: signal.Signals, workdir: Path, bucket: str) -> bool:
    """End the process once the step has a checkpoint in the bucket; say whether one is there to go on from."""
    client = boto3.client("s3")
    process = start(workdir, f"s3://{bucket}/store")
    limit = time.monotonic() + 200
    while not marked(client, bucket, step) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=100)
    return process.returncode != 0 and marked(client, bucket, step)


def marked(client: Any, bucket: str, step: str) -> bool:
    listed = client.list_objects_v2(Bucket=bucket, Prefix=f"store/checkpoints/{step}-").get("Contents", [])
    return any(item["Key"].endswith("/step.json") and item["Size"] > 2 for item in listed)


@pytest.mark.slow
def test_same_weights_after_pods_were_ended_with_their_working_directories(s3_server, s3_bucket, tmp_path):
    expected, out = finished(tmp_path / "whole", f"s3://{s3_server.new_bucket()}/store")
    assert "Going on from" not in out
    for step, number in (("sft", signal.SIGTERM), ("align", signal.SIGKILL)):
        hits = (end_in(step, number, tmp_path / f"{step}{attempt}", s3_bucket) for attempt in range(4))
        assert any(hits), f"no end came while {step} held checkpoints"
    found, out = finished(tmp_path / "last", f"s3://{s3_bucket}/store")
    assert found == expected
    assert re.search(rf"Going on from the checkpoint of step \d+ in s3://{s3_bucket}/store/checkpoints/align-", out)
    assert not any(marked(boto3.client("s3"), s3_bucket, step) for step in ("sft", "align"))  # done
