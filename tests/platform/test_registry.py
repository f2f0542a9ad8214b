"""The registered folder: what it holds, and what must belong together."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import yaml
from support.small_policy import write_small_policy

from understudy.errors import ConfigError, IntegrityError
from understudy.platform.registry import Registry, generation_defaults, refuse_pickles, write_model_folder
from understudy.platform.steps import register
from understudy.platform.storage import open_store
from understudy.records import DatasetRef, EvaluationReport, PolicyRef

DATASET = DatasetRef("u", "d" * 32 + ".dir", 3, {"train": 3}, 10, 1, "a.jsonl", "f" * 64, None)
POLICY = PolicyRef("u", "1" * 64, "aligned", DATASET.md5, "2" * 64, "3" * 64, "4" * 64, "scratch", 1.0, 10)
REPORT = EvaluationReport(
    "u", "5" * 64, DATASET.md5, {"aligned": POLICY.sha256},
    {"aligned": {"T=1": {"nll": {"value": 2.5, "low": 2.0, "high": 3.0, "n": 9}}}}, [], "no difference",
)  # fmt: skip
CONFIG = {"seed": 1, "registry": {"name": "tiny", "alias": "challenger"}, "params_sha256": "6" * 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_policy(tmp_path_factory.mktemp("policy") / "policy")


def test_the_step_registers_once_with_every_tag(folder, tmp_path, monkeypatch):
    import mlflow

    for name, value in {"UNDERSTUDY_WORKDIR": tmp_path, "UNDERSTUDY_RUN_ID": "run-1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("UNDERSTUDY_IMAGE_DIGEST", "sha256:abc")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    stored = open_store(None, tmp_path).put_folder(folder, "policy")
    policy = dataclasses.replace(POLICY, uri=stored.uri, sha256=stored.sha256)
    (tmp_path / "page").mkdir()
    (tmp_path / "page/report.json").write_text('{"temperatures": {"sft": 0.9, "aligned": 0.3}}')
    page = open_store(None, tmp_path).put_folder(tmp_path / "page", "report")
    report = dataclasses.replace(REPORT, policies={"aligned": stored.sha256}, uri=page.uri, sha256=page.sha256)
    entries = [register.run(CONFIG, policy, report, DATASET) for _ in range(2)]
    assert [entry.version for entry in entries] == ["1", "1"]
    tags = entries[0].tags
    assert tags["weights_sha256"] == stored.sha256 and tags["pipeline_run"] == "run-1"
    assert (tags["dataset_md5"], tags["parent_sha256"]) == (DATASET.md5, "2" * 64)
    assert (tags["image_digest"], tags["config_sha256"], tags["report_sha256"]) == ("sha256:abc", "6" * 64, page.sha256)
    assert tags["git_dirty"] in ("true", "false", "unknown") and tags["git_commit"]
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    version = registry.find("tiny@challenger")
    assert version.metrics == {"T=1": {"nll": 2.5}}
    (tmp_path / "downloaded").mkdir()
    model = registry.download(version, tmp_path / "downloaded")
    # What lies on this machine is not copied.
    assert not list((tmp_path / "downloaded").iterdir())
    files = [path.name for path in model.parent.rglob("*") if path.is_file()]
    assert "model.safetensors" in files and not [name for name in files if name.endswith((".bin", ".pkl", ".pt"))]
    # The temperature that the evaluation chose for this policy is what the version samples at.
    assert (tags["temperature"], generation_defaults(model)["temperature"]) == ("0.3", 0.3)
    with pytest.raises(ConfigError, match="no registered model 'tyni'.*Did you mean tiny"):
        registry.find("tyni")
    with pytest.raises(ConfigError, match=r"has no @champion. It has @challenger, /1"):
        registry.find("tiny@champion")
    signature = mlflow.models.get_model_info("models:/tiny/1").signature
    assert [item.name for item in signature.params.params] == ["max_new_tokens", "temperature"]
    assert signature.params.params[1].default == 0.3


def test_content_that_is_registered_again_gets_its_alias_back_and_no_new_version(folder, tmp_path):
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    for report, version in (("a", "1"), ("b", "2"), ("a", "1")):
        tags = {"weights_sha256": "1" * 64, "report_sha256": report * 64}
        entry = registry.register("tiny", "challenger", folder, tags, "understudy", None)
        assert (entry.version, registry.find("tiny@challenger").version) == (version, version)
    assert [item.version for item in registry.versions("tiny")] == ["2", "1"]


def test_every_model_and_version_is_found_however_many_there_are(tmp_path):
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    client = registry.client
    names = [f"m{number:03}" for number in range(102)]
    for name in names:
        client.create_registered_model(name)
    for name in ("m000", "m101", "m101", "m101"):
        client.create_model_version(name, "file:///nowhere")
    assert registry.find("m101/1").version == "1"  # beyond the first page of 100
    client.search_model_versions = partial(client.search_model_versions, max_results=2)
    listed = [(version.name, version.version) for version in registry.versions()]
    assert listed == [("m000", "1"), ("m101", "3"), ("m101", "2"), ("m101", "1")]
    for unknown in ("m102", ""):
        with pytest.raises(ConfigError, match=f"There is no registered model '{unknown}'.*Did you mean m"):
            registry.find(unknown)


def test_the_model_file_names_both_flavours(folder, tmp_path):
    write_model_folder(folder, tmp_path / "out", "m-1", None)
    model = yaml.safe_load((tmp_path / "out/MLmodel").read_text())
    assert model["flavors"]["transformers"]["pipeline_model_type"] == "LlamaForCausalLM"
    assert model["flavors"]["python_function"]["config"]["max_new_tokens"] == 32
    for name in ("model.safetensors", "generation_config.json"):
        assert (tmp_path / "out/model" / name).read_bytes() == (folder / name).read_bytes()


def test_pickles_are_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/pytorch_model.bin").touch()
    with pytest.raises(IntegrityError, match=r"holds pickles \['sub/pytorch_model.bin'\]"):
        refuse_pickles(tmp_path)


def test_records_that_do_not_belong_together_are_refused():
    with pytest.raises(IntegrityError, match="different dataset versions.*'report': 'other'"):
        register.check_belonging(POLICY, dataclasses.replace(REPORT, dataset_md5="other"), DATASET)
    with pytest.raises(IntegrityError, match=f"not about policy {POLICY.sha256}"):
        register.check_belonging(POLICY, dataclasses.replace(REPORT, policies={"sft": "9"}), DATASET)
