"""Receipts: what the registry does not confirm is forgotten, so that an unchanged run registers again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from understudy.platform.registrations import forget_unconfirmed, receipt, write_receipt
from understudy.records import RegistryEntry

SHA256 = "1" * 64
ENTRY = RegistryEntry("tiny", "1", "challenger", "models:/tiny/1", {"weights_sha256": SHA256})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sqlite registry that holds tiny/1 with the entry's weights, and tiny/2, which was deleted."""
    import mlflow

    uri = f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.create_registered_model("tiny")
    for _ in range(2):
        client.create_model_version("tiny", "file:///nowhere", tags={"weights_sha256": SHA256})
    client.delete_model_version("tiny", "2")
    return uri


def test_a_confirmed_receipt_stays_whatever_password_its_address_holds(tmp_path: Path, store: str) -> None:
    path = write_receipt(tmp_path, store, ENTRY)
    assert path == receipt(tmp_path, ENTRY) == tmp_path / "registrations/tiny-1.json"
    assert forget_unconfirmed(tmp_path, store) == [] and path.exists()
    secret = write_receipt(tmp_path, "http://me:hush@127.0.0.1:1/", ENTRY)
    assert "hush" not in secret.read_text()


@pytest.mark.parametrize(
    ("version", "sha256"), [("2", SHA256), ("3", SHA256), ("1", "2" * 64)], ids=["deleted", "absent", "other weights"]
)
def test_a_version_that_the_registry_does_not_hold_is_forgotten(
    tmp_path: Path, store: str, version: str, sha256: str
) -> None:
    entry = RegistryEntry("tiny", version, "challenger", "models:/tiny", {"weights_sha256": sha256})
    path = write_receipt(tmp_path, store, entry)
    assert forget_unconfirmed(tmp_path, store) == [path] and not path.exists()


def test_an_alias_that_another_version_has_by_now_is_forgotten_and_one_that_nobody_has_is_not(tmp_path: Path) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.create_registered_model("tiny")
    for _ in range(2):
        client.create_model_version("tiny", "file:///nowhere", tags={"weights_sha256": SHA256})
    path = write_receipt(tmp_path, uri, ENTRY)
    assert forget_unconfirmed(tmp_path, uri) == []
    client.set_registered_model_alias("tiny", "champion", "2")
    client.set_registered_model_alias("tiny", "challenger", "1")
    assert forget_unconfirmed(tmp_path, uri) == []
    client.set_registered_model_alias("tiny", "challenger", "2")
    assert forget_unconfirmed(tmp_path, uri) == [path]


def test_another_or_an_emptied_registry_forgets_and_is_not_created_by_asking(tmp_path: Path, store: str) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    path = write_receipt(tmp_path, store, ENTRY)
    assert forget_unconfirmed(tmp_path, other) == [path]
    path = write_receipt(tmp_path, other, ENTRY)
    assert forget_unconfirmed(tmp_path, other) == [path] and not (tmp_path / "other.db").exists()


def test_a_broken_receipt_is_forgotten(tmp_path: Path, store: str) -> None:
    path = write_receipt(tmp_path, store, ENTRY)
    path.write_text('{"registry": ')
    assert forget_unconfirmed(tmp_path, store) == [path]


class Answers(BaseHTTPRequestHandler):
    """MLflow's two answers about tiny/1 and the aliases of tiny; all else is RESOURCE_DOES_NOT_EXIST; wants a token."""

    challenger = "1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        tags = [{"key": "weights_sha256", "value": SHA256}]
        aliases = [{"alias": "champion", "version": "7"}, {"alias": "challenger", "version": self.challenger}]
        known = {
            ("model-versions/get", "tiny", "1"): {"model_version": {"tags": tags}},
            ("registered-models/get", "tiny", None): {"registered_model": {"aliases": aliases}},
        }
        asked = (address.path.removeprefix("/api/2.0/mlflow/"), query.get("name"), query.get("version"))
        status = 401 if self.headers["Authorization"] != "Bearer t0ken" else 200 if asked in known else 404
        body = json.dumps(known.get(asked, {})).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


def test_a_server_is_asked_with_the_users_token(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_receipt(tmp_path, server, ENTRY)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    assert forget_unconfirmed(tmp_path, server) == []
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "wrong")
    assert forget_unconfirmed(tmp_path, server) == [path]


def test_a_server_says_that_another_version_has_the_alias(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    monkeypatch.setattr(Answers, "challenger", "2")
    path = write_receipt(tmp_path, server, ENTRY)
    assert forget_unconfirmed(tmp_path, server) == [path]
