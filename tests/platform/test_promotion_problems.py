"""Preflight tells before any training what would keep the last step from promoting."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.champions import write_repository
from support.lineages import COMMIT, GATE, write_keys

from understudy.config import PromotionConfig, load_params
from understudy.errors import ConfigError
from understudy.platform import registry
from understudy.platform.steps import preflight
from understudy.platform.steps.promotion_problems import promotion_problems

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("UNDERSTUDY_SIGNING_KEY", "UNDERSTUDY_TRUSTED_KEYS", "UNDERSTUDY_STORAGE_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UNDERSTUDY_GIT_COMMIT", COMMIT)
    monkeypatch.setenv("UNDERSTUDY_RUNNER_PID", "1")


def found(gate: str | None = None, **settings) -> list[str]:
    promotion = PromotionConfig(enabled=True, **settings)
    return list(promotion_problems(promotion, gate or yaml.safe_dump(GATE), ["quality"]))


def signed() -> str:
    return yaml.safe_dump(GATE | {"provenance": {"allow_dirty_code": False, "require_signature": True}})


def test_a_good_one_has_none(tmp_path, monkeypatch):
    private, public = write_keys(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_SIGNING_KEY", str(private))
    monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", str(public))
    monkeypatch.setenv("UNDERSTUDY_STORAGE_URI", "s3://bucket/store")
    repository = write_repository(tmp_path / "repository")
    assert found(signed(), gitops=str(repository)) == [] == found(gitops=f"file://{repository}")


def test_each_problem_is_told(tmp_path, monkeypatch):
    (private, _), (_, stranger) = write_keys(tmp_path), write_keys(tmp_path, "stranger")
    (said,) = found("confidence: 2\n")
    assert said.startswith("promotion.gate: ") and "confidence: Input should be less than 1" in said
    asked = [GATE["primary"][0] | {"metric": f"judge:{name}"} for name in ("qualty", "ruff", "quality")]
    assert found(yaml.safe_dump(GATE | {"primary": asked})) == [
        "promotion.gate: it asks for judge:qualty, which evaluation does not have; did you mean 'quality'?",
        "promotion.gate: it asks for judge:ruff, which evaluation does not have; evaluation.judges has quality",
    ]
    (said,) = found(signed())
    assert "requires a signature, and UNDERSTUDY_SIGNING_KEY and UNDERSTUDY_TRUSTED_KEYS is not set" in said
    monkeypatch.setenv("UNDERSTUDY_SIGNING_KEY", str(private))
    monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", str(stranger))
    assert found(signed()) == [
        "promotion: the key of UNDERSTUDY_SIGNING_KEY is not among those of UNDERSTUDY_TRUSTED_KEYS"
    ]
    repository = write_repository(tmp_path / "repository")
    (said,) = found(gitops=str(repository))
    assert "cannot read weights in the working directory; set storage.uri=s3://…" in said
    monkeypatch.setenv("UNDERSTUDY_STORAGE_URI", "s3://bucket/store")
    (said,) = found(gitops=str(repository), environments=("moon",))
    assert "has no k8s/apps/moon/champion.yaml" in said
    (said,) = found(gitops="no/folder")
    assert "'no/folder' is no folder here and no address" in said
    monkeypatch.setattr(registry, "code_origin", lambda: {"git_commit": COMMIT, "git_dirty": "true"})
    (said,) = found()
    assert f"the code is commit {COMMIT[:12]}, changed since: true" in said


def test_a_pod_does_not_miss_what_only_the_last_step_is_given(monkeypatch):
    monkeypatch.delenv("UNDERSTUDY_RUNNER_PID")
    monkeypatch.setenv("UNDERSTUDY_STORAGE_URI", "s3://bucket/store")
    assert found(signed(), gitops="https://git.example.com/ml/cluster.git") == []


def test_preflight_tells_them_with_everything_else(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("UNDERSTUDY_RUNNER_PID")
    source = ROOT / "examples/tiny/demonstrations.jsonl"
    config = load_params(ROOT / "params.yaml", [f"data.source={source}"]).model_dump(mode="json")
    config |= {"promotion": {"enabled": True, "gitops": "https://git.example.com/x"}, "gate_yaml": yaml.safe_dump(GATE)}
    config["align"]["divergence"] = "reverse_kll"
    with pytest.raises(
        ConfigError, match="(?s)3 problems.*reverse_kll.*judge:quality, which.*validity.*gitops deploys"
    ):
        preflight.run(config)
    config["promotion"] = {"enabled": True, "gitop": "x"}
    with pytest.raises(ConfigError, match="did you mean 'gitops'"):
        preflight.run(config)


@pytest.mark.parametrize(
    "address", ["https://ann:s3cret@git.example.com/x", "https://s3cret@h/x", "ssh://a:s3cret@h/x"]
)
def test_an_address_with_credentials_is_refused_and_not_repeated(address):
    with pytest.raises(ConfigError, match="gitops is an address with credentials") as caught:
        load_params(ROOT / "params.yaml", [f"promotion.gitops={address}"])
    assert "s3cret" not in str(caught.value)
    for plain in ("ssh://git@git.example.com/x", "git@git.example.com:ml/x.git", "https://git.example.com/x"):
        assert PromotionConfig(gitops=plain).gitops == plain
