"""A password in an address is in no message, and in no list of processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from understudy.cli import call

PASSWORDS = ["Xq/heim", "Xq?heim", "Xq#heim", "Xq[heim", "Xqheim"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["understudy", "model"])  # by it the group decides what to import
    for name in ("UNDERSTUDY_STORAGE_URI", "UNDERSTUDY_WORKDIR", "KFP_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_tracking_uri_is_named_without_its_password(
    scheme: str, password: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://u:{password}@127.0.0.1:1")
    is_url = password == "Xqheim"
    for command, exit_code in ((["model", "list"], 5 if is_url else 2), (["doctor"], 1)):
        assert call(command) == exit_code
        captured = capsys.readouterr()
        told = captured.out + captured.err
        whose, why = ("MLflow at {}", "does not answer") if is_url else ("tracking URI '{}'", "as %2F %3F %23 %5B")
        assert whose.format(f"{scheme}://127.0.0.1:1") in told and why in told
        assert "Xq" not in told and "heim" not in told and "Unexpected" not in told


def test_a_kfp_endpoint_without_a_scheme_is_named_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text((Path(__file__).parents[2] / "params.yaml").read_text())
    assert call(["pipeline", "cancel", "run-1", "--endpoint", "u:ge/heim@127.0.0.1:18301"]) == 2
    told = capsys.readouterr().err
    assert "The KFP endpoint is '127.0.0.1:18301'" in told and "heim" not in told


def test_mlflow_gets_its_database_by_the_environment_and_not_as_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.cli import server

    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: started.append((arguments, environment)))
    uri = "postgresql://u:geheim@127.0.0.1:1/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert call(["ui", "--port", "58123"]) == 0
    ((arguments, environment),) = started
    assert arguments[:4] == [sys.executable, "-m", "mlflow", "server"] and "geheim" not in " ".join(arguments)
    (option,) = [option for option in server.params if option.name == "backend_store_uri"]
    assert option.envvar == "MLFLOW_BACKEND_STORE_URI" and environment[str(option.envvar)] == uri
