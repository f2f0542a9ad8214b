"""The champion as the registry names it: asked on real MLflow stores, sqlite and server."""

from __future__ import annotations

import json

import pytest
from support.small_policy import write_small_policy

from understudy.errors import IntegrityError, ServiceUnreachable
from understudy.platform.current_champion import current_champion
from understudy.platform.registry import Registry
from understudy.platform.steps import champion, unpack
from understudy.records import PolicyRef

TAGS = {
    "weights_uri": "s3://bucket/store/policy/1",
    "stage": "aligned",
    "dataset_md5": "d.dir",
    "parent_sha256": "2" * 64,
    "policy_config_sha256": "3" * 64,
    "code_sha256": "4" * 64,
    "base": "scratch",
}
ALIGNED = PolicyRef("u", "b" * 64, "aligned", "d.dir", None, "c", "c", "base", 3.0, 4)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("work")
    policy = write_small_policy(workdir / "policy")
    registry = Registry(f"sqlite:///{workdir}/mlflow.db", workdir)
    for weights in ("a" * 64, "b" * 64):
        tags = TAGS | {"weights_sha256": weights, "report_sha256": weights}
        registry.register("tiny", "challenger", policy, tags, "understudy", None)
    registry.register("bare", "champion", policy, {"weights_sha256": "", "report_sha256": "r"}, "understudy", None)
    return registry


@pytest.fixture
def ask(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path / "runs/r1"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    return lambda name="tiny": champion.run({"step": "champion", "name": name}, ALIGNED)


def test_no_registry_no_alias_the_champion_and_itself(ask, registry, monkeypatch, tmp_path):
    assert ask() == "" and ask("unknown") == ""
    registry.client.set_registered_model_alias("tiny", "champion", "1")
    found = unpack(ask(), PolicyRef)
    assert (found.uri, found.sha256, found.stage) == (TAGS["weights_uri"], "a" * 64, "aligned")
    assert (found.parent_sha256, found.config_sha256, found.base) == ("2" * 64, "3" * 64, "scratch")
    assert ask() == ask()  # the same champion is the same input, so evaluate is a cache hit
    registry.client.set_registered_model_alias("tiny", "champion", "2")
    assert ask() == ""  # its weights are those of the aligned policy
    registry.client.delete_registered_model_alias("tiny", "champion")
    assert ask() == ""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert ask() == "" and not (tmp_path / "mlflow.db").exists()


def test_a_relative_sqlite_store_is_asked(ask, registry, monkeypatch):
    registry.client.set_registered_model_alias("tiny", "champion", "1")
    monkeypatch.chdir(registry.workdir)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert unpack(ask(), PolicyRef).sha256 == "a" * 64
    registry.client.delete_registered_model_alias("tiny", "champion")


def test_a_version_of_elsewhere_is_named_with_what_it_lacks(ask):
    with pytest.raises(IntegrityError, match="bare/1 is @champion and has no weights_uri, weights_sha256, stage"):
        ask("bare")


def test_doubt_is_an_error_and_never_an_empty_registry(ask, registry, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(ServiceUnreachable, match="does not say whether tiny has a @champion") as refused:
        ask()
    assert "secret" not in str(refused.value)
    (tmp_path / "torn.db").write_bytes(b"not a database at all, but long enough to be read as one" * 50)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/torn.db")
    with pytest.raises(ServiceUnreachable, match="cannot be read"):
        ask()


@pytest.mark.parametrize(
    ("status", "content", "found"),
    [
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model with name=tiny not found"}, None),
        (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias champion not found."}, None),
        (
            200,
            {"model_version": {"version": "1", "tags": [{"key": "weights_sha256", "value": "a"}]}},
            "is @champion and has no",
        ),
        (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid name"}, "status 400 INVALID_PARAMETER"),
        (401, {"error_code": "UNAUTHENTICATED"}, "MLflow at http://server:5000/ does not say .*: status 401"),
        (503, {}, "status 503"),
        (200, {"page": "log in"}, "has no model version, but page"),
        (200, {"model_version": None}, "has no model version, but model_version"),
        (200, ["page"], "ValueError"),
    ],
)
def test_answers_of_a_server(status, content, found, monkeypatch, tmp_path):
    import requests

    asked = []

    class Answer:
        status_code = status

        @staticmethod
        def json():
            return content

    def request(method, address, **kwargs):
        asked.append((method, address, kwargs["params"]))
        return Answer

    monkeypatch.setattr(requests, "request", request)
    if found is None:
        assert current_champion("http://server:5000/", "tiny", tmp_path) is None
    else:
        error = IntegrityError if "is @champion" in found else ServiceUnreachable
        with pytest.raises(error, match=found):
            current_champion("http://server:5000/", "tiny", tmp_path)
    address = "http://server:5000/api/2.0/mlflow/registered-models/alias"
    assert asked == [("GET", address, {"name": "tiny", "alias": "champion"})]


def test_the_record_is_one_text_for_one_champion(ask, registry):
    registry.client.set_registered_model_alias("tiny", "champion", "1")
    text = ask()
    assert text == json.dumps(json.loads(text), sort_keys=True)
    registry.client.delete_registered_model_alias("tiny", "champion")
