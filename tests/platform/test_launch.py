"""Launching on one machine: the command, signals, exit statuses, and what travels between launcher and training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.train_jobs import POLICY, request, settings

from understudy.errors import ConfigError, IntegrityError, Preempted, TrainingDiverged, UnderstudyError
from understudy.platform import launch
from understudy.platform.launch_request import (
    FAILURE,
    RESULT,
    Exchange,
    Request,
    read_failure,
    read_result,
    write_failure,
    write_result,
)
from understudy.records import PolicyRef


def launched() -> Any:
    asked = request()
    return launch.launched(asked.step, asked.config, asked.inputs, asked.outputs)


def test_one_process_and_a_launched_process_run_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch.SETTINGS, raising=False)
    assert launched() is None
    monkeypatch.setenv(launch.SETTINGS, settings(nodes=1, gpus_per_node=1).model_dump_json())
    assert launched() is None
    monkeypatch.setenv(launch.SETTINGS, settings(nodes=2).model_dump_json())
    monkeypatch.setenv(launch.WORKER, "1")
    assert launched() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Invalid JSON"),
        ("[]", "UNDERSTUDY_LAUNCH is not what this version expects"),
        (json.dumps({"step": "sft"}), "nodes: "),
        (settings().model_dump_json().replace('"nodes":2', '"nodes":"zwei","gpus":1'), "gpus: .*|nodes: .*"),
    ],
)
def test_settings_of_another_version_are_told_with_the_remedy(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launch.SETTINGS, text)
    with pytest.raises(ConfigError, match=rf"(?s){words}.*understudy pipeline compile"):
        launched()


def test_the_command_on_one_machine_and_on_one_of_several() -> None:
    alone = launch.accelerate_command("/place", 4, {})
    assert alone[-3:] == ["--module", "understudy.platform.worker", "/place"]
    options = dict(zip(alone[3:-3:2], alone[4:-3:2], strict=True))
    assert options["--num_machines"] == "1" and options["--num_processes"] == "4"
    assert options["--main_process_port"] == "0" and options["--config_file"].endswith("accelerate/ddp.yaml")
    pet = {"PET_NNODES": "3", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29500"}
    several = " ".join(launch.accelerate_command("s3://b/p", 4, pet | {"UNDERSTUDY_ACCELERATE": "fsdp"}))
    for words in (
        "--num_machines 3 --machine_rank 2 --num_processes 12",
        "--same_network --main_process_ip job-node-0-0.job --main_process_port 29500",
        "accelerate/fsdp.yaml",
    ):
        assert words in several
    with pytest.raises(ConfigError, match="UNDERSTUDY_ACCELERATE='nosuch': no such file. Use ddp, fsdp or a file"):
        launch.accelerate_command("/place", 4, {"UNDERSTUDY_ACCELERATE": "nosuch"})


@pytest.mark.parametrize(
    ("script", "failure", "status"),
    [
        ("pass", None, 0),
        ("raise SystemExit(3)", None, 3),
        ("import os; os.abort()", None, 1),
        ("raise SystemExit(1)", ConfigError("x"), 2),
        ("raise SystemExit(1)", TrainingDiverged("x"), 1),
    ],
)
def test_a_pods_exit_status_is_that_of_the_error(
    script: str, failure: UnderstudyError | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "accelerate_command", lambda *_: [sys.executable, "-c", script])
    if failure:
        write_failure(Exchange(str(tmp_path)), failure)
    assert launch.main([str(tmp_path)]) == status


SIGNALLED = """
import sys
from understudy.platform import launch
child = "import signal, time; signal.signal(15, lambda *_: exit(0)); print('ready', flush=True); time.sleep(60)"
launch.accelerate_command = lambda *_: [sys.executable, "-c", child]
sys.exit(launch.main([sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_processes_and_the_status_says_so(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.wait(60)
    # A child that saved and ended well is no preemption; torchrun's own status is that of the signal.
    assert process.returncode == 0


def test_a_request_comes_back_as_it_was_and_another_version_is_refused() -> None:
    asked = request()
    again = Request.from_json(json.loads(json.dumps(asked.to_json())))
    assert again == asked and again.sha256 == asked.sha256
    for change in ({"step": "../../etc"}, {"step": "os.path"}, {"extra": 1}, {"step": 7}):
        with pytest.raises(IntegrityError, match="differ in version"):
            Request.from_json(asked.to_json() | change)
    with pytest.raises(IntegrityError, match="'Path' is no kind of record"):
        Request.from_json(asked.to_json() | {"outputs": ["Path"]})


def test_a_result_is_taken_for_its_own_request_and_of_its_kinds_only(tmp_path: Path) -> None:
    exchange, asked = Exchange(str(tmp_path)), request()
    assert read_result(exchange, asked) is None and read_failure(exchange) is None
    write_result(exchange, asked, [POLICY])
    assert read_result(exchange, asked) == (POLICY,)
    assert read_result(exchange, Request("sft", {"seed": 2}, asked.inputs, asked.outputs)) is None
    two = Request(asked.step, asked.config, asked.inputs, [PolicyRef, PolicyRef])
    write_result(exchange, two, [POLICY])
    with pytest.raises(IntegrityError, match=r"holds \['PolicyRef'\], step sft returns \['PolicyRef', 'PolicyRef'\]"):
        read_result(exchange, two)
    assert sorted(path.name for path in tmp_path.iterdir()) == [RESULT]  # nothing half-written is left


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[]", "holds list, not an object"), ("\xff", "is not JSON"), ("{}", None)],
)
def test_a_broken_result_is_told_and_not_a_traceback(text: str, words: str | None, tmp_path: Path) -> None:
    exchange = Exchange(str(tmp_path))
    (tmp_path / RESULT).write_text(text, encoding="latin-1")
    if words is None:
        assert read_result(exchange, request()) is None
    else:
        with pytest.raises(IntegrityError, match=f"{words}.*run the step again"):
            read_result(exchange, request())
    exchange.write(RESULT, {"request_sha256": request().sha256})
    with pytest.raises(IntegrityError, match="is no result"):
        read_result(exchange, request())


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ({"error": "TrainingDiverged", "message": "nan"}, TrainingDiverged, "nan"),
        ({"error": "Preempted", "message": "später"}, Preempted, "später"),
        ({"error": "annotations", "message": "no class"}, UnderstudyError, "no class"),
        ({"error": "NoSuchError", "message": "m"}, UnderstudyError, "m"),
        ({"odd": 1}, UnderstudyError, "{'odd': 1}"),
    ],
)
def test_a_failure_keeps_its_class_if_it_is_one_of_ours(
    content: dict[str, Any], kind: type[UnderstudyError], message: str, tmp_path: Path
) -> None:
    exchange = Exchange(str(tmp_path))
    exchange.write(FAILURE, content)
    found = read_failure(exchange)
    assert type(found) is kind and str(found) == message
