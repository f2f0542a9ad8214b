"""A KFP session that has ended is told as such by every command; tokens are taken in one way and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.kfp_api import KfpApi
from support.login_proxy import LOGIN, login_proxy

from understudy.cli import call
from understudy.errors import ConfigError, ServiceUnreachable
from understudy.platform import schedules_kfp
from understudy.platform.schedules_kfp import Kfp
from understudy.platform.submit import Outcome, Runs, wait

ROOT = Path(__file__).parents[2]
TOKEN = "eyJ.s3cr3t-bearer"
SUBMIT = [
    "pipeline",
    "submit",
    "--set",
    "platform.images={steps: registry.example.com/steps-python:1, train: registry.example.com/train-python:1}",
    "--set",
    "data.source=s3://bucket/demonstrations.jsonl",
]
COMMANDS = [
    ["pipeline", "cancel", "run-1"],
    SUBMIT,
    ["schedule", "enforce"],
    ["schedule", "plan", "--exit-code"],
    ["schedule", "apply"],
]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["understudy", "pipeline"])  # by it the group decides what to import
    for name in ("KFP_ENDPOINT", "KFP_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("how", ["redirect", "page"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "-".join(command[:2]))
def test_a_login_page_is_no_answer(
    command: list[str], how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with login_proxy(how) as (url, asked):
        monkeypatch.setenv("KFP_ENDPOINT", url)
        monkeypatch.setenv("KFP_TOKEN", TOKEN)
        assert call(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "log in again" in captured.err and "it was not done" in captured.err and url in captured.err
    assert (f"status 302, to '{LOGIN}'" in captured.err) == (how == "redirect")
    assert "s3cr3t" not in captured.err
    assert len(asked) == 1 and LOGIN not in asked  # nothing was asked for after the first refusal


def test_what_was_made_has_an_id() -> None:
    with login_proxy("empty") as (url, asked):
        with pytest.raises(ServiceUnreachable, match="create an experiment and answers without its experiment_id"):
            Runs(url, "understudy").submit("one", {"pipeline_spec": {}}, {}, "understudy-runner")
        assert asked == ["/apis/v2beta1/experiments"] * 2
        with pytest.raises(ServiceUnreachable, match="without its run_id, so it is unknown whether it was done"):
            kfp = Kfp(url, "understudy")
            kfp.made("start a run", "run_id", kfp.client.runs.run_service_create_run, run={})


def test_a_session_that_ends_while_waiting_says_that_the_run_goes_on() -> None:
    with login_proxy("page") as (url, _):
        runs = Runs(url, "understudy")
        with pytest.raises(ConfigError, match="log in again.*Run run-1 goes on; cancel it with"):
            wait(runs, Outcome("run-1", "one"), lambda line: None, 0.01)
        assert runs.log("run-1", "pod") == ""


def test_a_server_that_is_silent_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(schedules_kfp, "_TIMEOUT_SECONDS", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceUnreachable, match="does not answer"):
            Kfp(url, "understudy").terminate("run-1")


@pytest.mark.parametrize("how", ["file", "variable"])
def test_schedules_take_a_persons_token_and_endpoint(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    with KfpApi(token=TOKEN) as api:
        monkeypatch.setenv("KFP_ENDPOINT", api.url)
        assert call(["schedule", "enforce"]) == 2
        assert "does not let this account list recurring runs" in capsys.readouterr().err
        if how == "variable":
            monkeypatch.setenv("KFP_TOKEN", TOKEN + "\n")
        given = ["--token-file", str(tmp_path / "token")] if how == "file" else []
        assert call(["schedule", "enforce", *given]) == 0
    assert capsys.readouterr().out == "Every run is within its budget.\n"


@pytest.mark.parametrize("how", ["KFP_TOKEN", "--token-file", "KF_PIPELINES_SA_TOKEN_PATH"])
def test_a_token_that_no_header_can_carry_is_not_shown(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\nsecond line")
    given = ["--token-file", str(tmp_path / "token")] if how == "--token-file" else []
    if how == "KFP_TOKEN":
        monkeypatch.setenv(how, f"{TOKEN}\nsecond line")
    elif not given:
        monkeypatch.setenv(how, str(tmp_path / "token"))
    with KfpApi(token=TOKEN) as api:
        assert call(["schedule", "enforce", "--endpoint", api.url, *given]) == 2
        assert api.calls == []
    told = capsys.readouterr().err
    assert "holds 29 characters, 2 of them spaces, line breaks or not ASCII" in told
    assert "eyJ" not in told and "second" not in told


def test_the_endpoints_variable_is_the_one_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(SUBMIT) == 2
    assert "with --endpoint or KFP_ENDPOINT" in capsys.readouterr().err
