"""`understudy pipeline`: compile with other settings; submit, follow and cancel runs through the real kfp client."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kfp_api import KfpApi

from understudy import cli
from understudy.config import load_params
from understudy.platform import submit

ROOT = Path(__file__).parents[2]
TOKEN = "s3cr3t-bearer"
IMAGES = [
    "--set",
    "platform.images={steps: registry.example.com/steps-python:1, train: registry.example.com/train-python:1}",
]
SOURCE = ["--set", "data.source=s3://bucket/demonstrations.jsonl"]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["understudy", "pipeline"])  # by it the group decides what to import
    for name in ("KFP_ENDPOINT", "KFP_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def api() -> Iterator[KfpApi]:
    with KfpApi(token=TOKEN) as running:
        yield running


def submitted(api: KfpApi, *more: str) -> list[str]:
    return ["pipeline", "submit", "--endpoint", api.url, "--poll-seconds", "0.05", *SOURCE, *IMAGES, *more]


def when_submitted(api: KfpApi, act: Any) -> threading.Thread:
    """Run `act(run_id)` once a run exists."""

    def body() -> None:
        until = time.monotonic() + 60
        while not api.runs and time.monotonic() < until:
            time.sleep(0.02)
        act(next(iter(api.runs)))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def test_a_run_is_created_with_the_adhoc_queue_our_account_and_the_params(
    api: KfpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    (tmp_path / "preset.yaml").write_text("seed: 12\nsft: {epochs: 5}\n")
    assert cli.call(submitted(api, "--preset", str(tmp_path / "preset.yaml"), "--set", "seed=11", "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    (run,) = api.runs.values()
    assert said["run_id"] == run["run_id"] and said["state"] == "PENDING"
    assert run["service_account"] == "understudy-runner"
    assert run["runtime_config"]["parameters"]["sft_config"]["seed"] == 11
    assert run["runtime_config"]["parameters"]["sft_config"]["sft"]["epochs"] == 5
    executors = run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-align"]["podMetadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "adhoc"
    assert "nodeSelector" not in executors["exec-align"]
    (experiment,) = api.experiments.values()
    assert experiment["display_name"] == "understudy-adhoc"


def test_wait_tells_states_and_log_lines_and_ends_with_0(
    api: KfpApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")

    def act(run_id: str) -> None:
        api.finish(run_id, "RUNNING")
        api.set_task(run_id, "sft", "RUNNING", "pod-sft", "step 1\nstep 2 half of a li")
        time.sleep(0.5)
        api.set_task(run_id, "sft", "SUCCEEDED", "pod-sft", "step 1\nstep 2 half of a line\nlast without newline")
        api.finish(run_id)

    thread = when_submitted(api, act)
    assert cli.call(submitted(api, "--wait", "--token-file", str(tmp_path / "token"))) == 0
    thread.join()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line for line in lines if line.startswith("run")] == ["run: running", "run: succeeded"]
    # States and log are two requests: a line may be read before or after the state that followed it.
    assert [line for line in lines if line.startswith("sft:")] == ["sft: running", "sft: succeeded"]
    assert [line for line in lines if line.startswith("sft |")] == [
        "sft | step 1",
        "sft | step 2 half of a line",
        "sft | last without newline",
    ]


def test_a_failed_run_ends_with_1_the_step_and_its_last_lines(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_TOKEN", TOKEN)

    def act(run_id: str) -> None:
        lines = "\n".join(f"line {number}" for number in range(40)) + "\nDataRefused: 9 of 10 rows are bad.\n"
        # As Argo shows it: the step, below it the retries, below them one pod per attempt.
        nodes = [
            ("ingest-driver", "d", [], "SUCCEEDED"),
            ("ingest", "n1", ["n2"], "FAILED"),
            ("executor", "n2", ["p0", "p1"], "FAILED"),
            ("executor(0)", "p0", [], "FAILED"),
            ("executor(1)", "p1", [], "FAILED"),
        ]
        api.runs[run_id]["run_details"] = {
            "task_details": [
                {
                    "display_name": name,
                    "task_id": pod,
                    "run_id": run_id,
                    "pod_name": pod,
                    "state": state,
                    "child_tasks": [{"pod_name": child} for child in children],
                }
                for name, pod, children, state in nodes
            ]
        }
        api.logs[run_id, "p0"], api.logs[run_id, "p1"] = "first attempt\n", lines
        api.finish(run_id, "FAILED", "exit code 3")

    when_submitted(api, act)
    assert cli.call(submitted(api, "--wait", "--json")) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["steps"] == {"ingest": "FAILED"}
    assert "Step ingest of run" in captured.err and "failed: exit code 3." in captured.err
    assert captured.err.rstrip().endswith("DataRefused: 9 of 10 rows are bad.")
    told = captured.err[captured.err.index("Its last lines:") :]
    assert "line 26" in told and "line 25" not in told


@pytest.mark.parametrize("cancel", [False, True])
def test_ctrl_c_ends_with_75_and_leaves_or_cancels_the_run(
    cancel: bool, api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_TOKEN", TOKEN)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(submit.time, "sleep", interrupted)
    more = ["--cancel-on-interrupt"] if cancel else []
    assert cli.call(submitted(api, "--wait", *more)) == 75
    ((run_id, run),) = api.runs.items()
    told = capsys.readouterr().err
    assert run["state"] == ("CANCELING" if cancel else "PENDING")
    assert (f"asked to cancel run {run_id}" in told) == cancel
    assert (f"goes on; cancel it with `understudy pipeline cancel {run_id}`" in told) != cancel


def test_cancel_asks_kfp_to_end_a_run(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    assert cli.call(submitted(api)) == 0
    (run_id,) = api.runs
    assert cli.call(["pipeline", "cancel", run_id, "--endpoint", api.url]) == 0
    assert api.runs[run_id]["state"] == "CANCELING"
    api.finish(run_id, "RUNNING")
    capsys.readouterr()
    assert cli.call(["pipeline", "cancel", run_id, "--endpoint", api.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run_id": run_id, "namespace": "understudy", "asked_to_end": True}
    assert api.runs[run_id]["state"] == "CANCELING"


def test_an_unreachable_or_refusing_server_is_named_without_the_token(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_TOKEN", "wrong-token")
    assert cli.call(submitted(api)) == 2
    refused = capsys.readouterr().err
    assert "does not let this account" in refused and "wrong-token" not in refused
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    for nth in range(1, 9):
        api.fail(nth)
    assert cli.call(submitted(api)) == 5
    assert TOKEN not in capsys.readouterr().err
    assert not api.runs


def test_an_answer_that_was_lost_does_not_start_a_second_run(api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    assert cli.call(submitted(api)) == 0
    creates = [index for index, call in enumerate(api.calls) if call == ("POST", "/apis/v2beta1/runs")]
    before = len(api.calls)
    # The second time the experiment exists: its list, then the run.
    api.fail(2, after=True)
    assert cli.call(submitted(api)) == 0
    assert [call for call in api.calls[before:] if call[0] == "POST"] == [("POST", "/apis/v2beta1/runs")]
    assert creates and len(api.runs) == 2


def test_a_poll_that_fails_is_no_end(api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = submit.Runs(api.url, "understudy", TOKEN)
    spec = {"pipeline_spec": {"root": {}}}
    outcome = runs.submit("one", spec, {}, "understudy-runner")
    api.finish(outcome.run_id)
    api.fail(1)
    api.fail(2)
    assert submit.wait(runs, outcome, lambda line: None, 0.01).state == "SUCCEEDED"
    monkeypatch.setattr(submit, "PATIENCE_SECONDS", 0.0)
    for nth in range(1, 9):
        api.fail(nth)
    with pytest.raises(submit.ServiceUnreachable, match="goes on; cancel it with"):
        submit.wait(runs, outcome, lambda line: None, 0.01)


def test_what_no_pod_could_read_or_pull_is_refused_before_anything_is_sent(
    api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(["pipeline", "submit", "--endpoint", api.url, "--set", "data.source=my.jsonl"]) == 2
    told = capsys.readouterr().err
    assert told.count("  - ") == 3 and "'my.jsonl', a file of this machine" in told
    assert api.calls == []
    assert cli.call(["pipeline", "submit", *SOURCE, *IMAGES]) == 2
    assert "give http(s)://HOST:PORT with --endpoint" in capsys.readouterr().err


def test_a_deployed_version_runs_by_its_name(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.compile import compile_pipeline

    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    compiled = compile_pipeline(load_params(ROOT / "params.yaml").platform)
    ids, name = api.apply([compiled.pipeline, compiled.version]), compiled.version["metadata"]["name"]
    assert cli.call(["pipeline", "submit", "--endpoint", api.url, *SOURCE, "--version", name]) == 0
    (run,) = api.runs.values()
    assert run["pipeline_version_reference"]["pipeline_version_id"] == ids[name]
    assert cli.call(["pipeline", "submit", "--endpoint", api.url, *SOURCE, "--version", "nope"]) == 2
    assert f"it has ['{name}']" in capsys.readouterr().err


def test_compile_does_not_meet_what_another_writes_aside(tmp_path: Path) -> None:
    for path in (ROOT / "pipelines" / "compiled").rglob("*.yaml"):
        aside = tmp_path / path.relative_to(ROOT / "pipelines" / "compiled")
        aside.with_name(f".{path.name}.aside").mkdir(parents=True)
    assert cli.call(["pipeline", "compile", "--out", str(tmp_path)]) == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not [path for path in written if path.name.startswith(".")]


def test_compile_takes_other_settings_and_names_all_problems_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pipeline", "compile", "--out", str(tmp_path)]
    assert cli.call([*command, "--set", "platform.steps.align.gpus=8", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert sorted(written) == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.yaml"))
    assert '"gpus_per_node":8' in (tmp_path / "retrain.yaml").read_text()
    assert cli.call([*command, "--check"]) == 2
    assert "is not what the pipeline compiles to" in capsys.readouterr().err
    bad = ["platform.steps.align.gpus=-1", "platform.steps.notify.gpus=1", "platform.env.HF_TOKEN=x"]
    assert cli.call([*command, *(part for item in bad for part in ("--set", item))]) == 2
    told = capsys.readouterr().err
    assert "3 problems" in told and "steps.notify.gpus: unknown key" in told and "put it into a Secret" in told
    assert cli.call([*command, "--release"]) == 2
    assert capsys.readouterr().err.count("is a placeholder") == 2


def test_compile_takes_a_presets_platform_and_check_names_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = "pipelines/runs/several-gpus.yaml"
    command = ["pipeline", "compile", "--out", str(tmp_path), "--preset", preset]
    assert cli.call([*command, "--check"]) == 2
    assert f"Run `understudy pipeline compile --preset {preset}` and commit" in capsys.readouterr().err
    assert cli.call(command) == 0
    assert '"gpus_per_node":8' in (tmp_path / "retrain.yaml").read_text()
    assert cli.call([*command, "--check"]) == 0
