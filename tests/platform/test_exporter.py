"""The exporter against answers that a real MLflow 3.17 server gave, over HTTP."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from understudy.errors import ConfigError
from understudy.platform import exporter

MISSING = (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model with name=m not found"})
NO_ALIAS = (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias champion not found."})
CHAMPION = (200, {"model_version": {"name": "m", "version": "3", "creation_timestamp": 1795474202885}})
EXPERIMENT = (200, {"experiment": {"experiment_id": "0"}})


def run(step: str, *metrics: tuple[str, float, int]) -> dict[str, Any]:
    tags = [{"key": "understudy.step", "value": step}, {"key": "understudy.run_id", "value": 'r"1'}]
    logged = [{"key": key, "value": value, "timestamp": at, "step": 0} for key, value, at in metrics]
    info = {"run_id": f"id-{step}", "start_time": 1795474000000, "status": "RUNNING"}
    return {"info": info, "data": {"tags": tags, "metrics": logged}}


class Mlflow(ThreadingHTTPServer):
    """Answers by path; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers: dict[str, tuple[int, Any]] = {"get-by-name": EXPERIMENT, "search": (200, {}), "alias": MISSING}
        self.asked: list[Any] = []
        self.credentials: set[str | None] = set()


class Answer(BaseHTTPRequestHandler):
    server: Mlflow

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        length = int(self.headers.get("Content-Length", 0))
        self.server.asked.append((name, json.loads(self.rfile.read(length)) if length else self.path))
        self.server.credentials.add(self.headers["Authorization"])
        status, body = self.server.answers[name]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def mlflow() -> Iterator[Mlflow]:
    with Mlflow() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def values(samples: list[exporter.Sample]) -> dict[tuple[str, str], float]:
    return {(item.name, item.labels.get("step") or item.labels.get("model", "")): item.value for item in samples}


def test_running_steps_and_champion(mlflow: Mlflow) -> None:
    metrics = (("discriminator_accuracy", 0.75, 1795474100000), ("system/cpu", 3.0, 1795474999000))
    mlflow.answers["search"] = (200, {"runs": [run("align", *metrics), run("sft"), run("run")]})
    mlflow.answers["alias"] = CHAMPION
    assert values(exporter.collect(mlflow.uri, "understudy", ["m"])) == {
        ("understudy_exporter_up", ""): 1,
        (exporter.RUN_STARTED, "align"): 1795474000,
        (exporter.RUN_LAST_METRIC, "align"): 1795474100,  # not the system metric's 1795474999
        ("understudy_discriminator_accuracy", "align"): 0.75,
        (exporter.RUN_STARTED, "sft"): 1795474000,
        (exporter.RUN_LAST_METRIC, "sft"): 1795474000,
        (exporter.CHAMPION_EXISTS, "m"): 1,
        (exporter.CHAMPION_CREATED, "m"): 1795474202.885,
    }
    searched = next(asked for name, asked in mlflow.asked if name == "search")
    assert searched["filter"] == "attributes.status = 'RUNNING'"


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({"TOKEN": "t0ken"}, "Bearer t0ken"),
        ({"USERNAME": "me", "PASSWORD": "hush"}, "Basic bWU6aHVzaA=="),
        ({"TOKEN": "t0ken", "USERNAME": "me", "PASSWORD": "hush"}, "Basic bWU6aHVzaA=="),  # as MLflow's client decides
        ({}, None),
    ],
)
def test_every_question_has_the_credentials_of_the_environment(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sent: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    assert exporter.collect(mlflow.uri, "understudy", ["m"])[0].value == 1
    assert len(mlflow.asked) == 3 and mlflow.credentials == {sent}


@pytest.mark.parametrize("answer", [MISSING, NO_ALIAS])
def test_no_champion_is_a_zero_not_an_absence(mlflow: Mlflow, answer: tuple[int, Any]) -> None:
    mlflow.answers["alias"] = answer
    assert values(exporter.collect(mlflow.uri, "understudy", ["m"]))[exporter.CHAMPION_EXISTS, "m"] == 0


@pytest.mark.parametrize("answer", [(500, {}), (403, {"error_code": "PERMISSION_DENIED"}), (200, b"<html>")])
def test_a_broken_server_is_down_and_nothing_else(
    mlflow: Mlflow, answer: tuple[int, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.answers["search"] = answer
    assert exporter.collect(mlflow.uri, "understudy", ["m"]) == [exporter.Sample("understudy_exporter_up", {}, 0)]
    assert "MLflow could not be asked" in capsys.readouterr().err


def test_no_experiment_yet_is_no_fault(mlflow: Mlflow) -> None:
    mlflow.answers["get-by-name"] = MISSING
    assert values(exporter.collect(mlflow.uri, "understudy", [])) == {("understudy_exporter_up", ""): 1}


def test_exposition_escapes_and_groups() -> None:
    samples = [
        exporter.Sample("understudy_kl_mean", {"run_id": 'a"b\\c\nd'}, 0.1),
        exporter.Sample("understudy_exporter_up", {}, 1),
        exporter.Sample("understudy_kl_mean", {"run_id": "e"}, float("nan")),
    ]
    lines = exporter.exposition(samples).splitlines()
    assert lines[2] == "understudy_exporter_up 1.0"
    assert lines[-2:] == ['understudy_kl_mean{run_id="a\\"b\\\\c\\nd"} 0.1', 'understudy_kl_mean{run_id="e"} NaN']
    assert exporter.exposition(samples).count("# TYPE understudy_kl_mean gauge") == 1


def test_served_over_http(mlflow: Mlflow) -> None:
    with exporter.server(mlflow.uri, "understudy", ["m"], port=0, host="127.0.0.1") as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{running.server_address[1]}"
        with urllib.request.urlopen(f"{base}/metrics", timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert 'understudy_champion_exists{model="m"} 0.0' in answer.read().decode()
        with urllib.request.urlopen(f"{base}/healthz", timeout=5) as answer:
            assert answer.read() == b"ok\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{base}/other", timeout=5)
        running.shutdown()


def test_it_needs_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///m.db")
    with pytest.raises(ConfigError, match="'sqlite:///m.db', the exporter needs"):
        exporter.main([])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://u:ge/heim@h/db")
    with pytest.raises(ConfigError, match="is 'postgresql://h/db', the exporter needs"):
        exporter.main([])
