"""The pipeline's last step: what it makes of passes, failures, ties, damage and its own second attempt."""

from __future__ import annotations

import os
import shutil

import pytest
import yaml
from support.champions import git, write_repository
from support.lineages import COMMIT, GATE, World

from understudy.config import PromotionConfig
from understudy.errors import ConfigError, GateRefused
from understudy.platform.promotion.decisions import read_decisions
from understudy.platform.promotion.places import place_of
from understudy.platform.registry import Registry
from understudy.platform.steps import promote
from understudy.records import Promotion, RegistryEntry


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Version 1; versions 2 (better), 3 (as good) and 4 (better, damaged later), all compared with version 1."""
    made = World(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        clean(patch, made)
        made.versions = [made.register("first")]
        made.versions += [made.register(name, quality, made.versions[0]) for name, quality in QUALITIES.items()]
    return made


QUALITIES = {"second": 0.9, "third": 0.5, "fourth": 0.9}


def clean(patch, made) -> None:
    for name in list(os.environ):
        if name.startswith(("UNDERSTUDY_", "MLFLOW_", "AWS_", "DVC_")):
            patch.delenv(name)
    patch.setenv("UNDERSTUDY_WORKDIR", str(made.workdir))
    patch.setenv("UNDERSTUDY_GIT_COMMIT", COMMIT)


@pytest.fixture(autouse=True)
def fresh(world, monkeypatch):
    """No champion and no decisions yet."""
    clean(monkeypatch, world)
    monkeypatch.setenv("UNDERSTUDY_RUN_ID", "run-1")
    for alias in ("champion", "previous"):
        world.registry.client.delete_registered_model_alias("tiny", alias)
    shutil.rmtree(world.workdir / "promotion", ignore_errors=True)


def decide(world, number: int, gate=None, **settings) -> Promotion:
    version = world.versions[number - 1]
    config = {
        "promotion": PromotionConfig(enabled=True, **settings).model_dump(mode="json"),
        "gate_yaml": yaml.safe_dump(GATE | (gate or {})),
    }
    return promote.run(config, RegistryEntry("tiny", version.version, "challenger", "models:/tiny", version.tags))


def test_first_better_and_no_better(world, monkeypatch):
    first = decide(world, 1)
    assert (first.outcome, first.verdict, first.champion, first.previous) == ("promoted", "no_rule", "1", None)
    assert first.reason.startswith("No rule applied: there is no champion, and gate.yaml asks nothing of a first one")
    (decision,) = read_decisions(place_of(world.workdir, "tiny", None))
    assert decision.transition.reason == first.reason and first.commit is None
    assert decision.sha256 == first.decision_sha256 and decision.transition.decided_by == "pipeline run run-1"
    # An attempt that was cut off after it had decided says the same the second time; another run changes nothing.
    assert decide(world, 1) == first
    monkeypatch.setenv("UNDERSTUDY_RUN_ID", "run-2")
    again = decide(world, 1)
    assert (again.outcome, again.champion, again.decision_sha256) == ("unchanged", "1", None)
    third = decide(world, 3)
    assert (third.outcome, third.verdict, third.champion) == ("refused", "fail", "1")
    assert "tiny/3 is not promoted" in third.reason and "judge:quality (tuned)" in third.reason
    second = decide(world, 2)
    assert (second.outcome, second.champion, second.previous) == ("promoted", "2", "1")
    assert second.reason == "Pass: aligned may replace champion."
    assert len(read_decisions(place_of(world.workdir, "tiny", None))) == 2


def test_too_few_prompts_say_how_many_more(world):
    decide(world, 1)
    rule = GATE["primary"][0] | {"standard_deviation": 1.0}
    found = decide(world, 2, {"primary": [rule]})
    assert (found.outcome, found.verdict, found.champion) == ("refused", "not_enough_evidence", "1")
    assert found.more_prompts is not None and 400 < found.more_prompts < 900 and "more prompts" in found.reason


def test_a_first_champion_that_was_not_measured_as_the_gate_asks_fails_the_step(world):
    with pytest.raises(GateRefused, match="aligned has no judge:qualty; did you mean 'judge:quality'"):
        decide(world, 1, {"primary": [GATE["primary"][0] | {"metric": "judge:qualty"}]})
    assert read_decisions(place_of(world.workdir, "tiny", None)) == []


def test_the_first_is_left_to_a_person_where_the_gate_says_so(world):
    found = decide(world, 1, {"no_champion": "refuse"})
    assert (found.outcome, found.verdict, found.champion) == ("refused", "not_decided", None)
    assert "a person chooses the first" in found.reason


def test_the_champions_own_weights_are_nothing_to_decide(world):
    """A run that repeats the champion's with another report registers another version of the same weights."""
    decide(world, 1)
    sha256 = world.versions[0].tags["weights_sha256"]
    with pytest.MonkeyPatch.context() as patch:
        clean(patch, world)
        twin = world.register("first", quality=0.99)
    world.versions.append(twin)
    assert twin.tags["weights_sha256"] == sha256 and twin.version != "1"
    found = decide(world, len(world.versions))
    assert (found.outcome, found.verdict, found.champion) == ("unchanged", "same_weights", "1")


def test_what_may_never_be_promoted_fails_the_step(world):
    with pytest.raises(GateRefused, match="it was compared with champion .*, and there is none now"):
        decide(world, 2)
    decide(world, 1)
    (file,) = world.workdir.glob(f"store/policy/{world.versions[3].tags['weights_sha256']}/model.safetensors")
    file.chmod(0o644)
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    with pytest.raises(GateRefused, match="- integrity: policy aligned") as refused:
        decide(world, 4)
    assert refused.value.exit_code == 4
    decide(world, 2)
    with pytest.raises(GateRefused, match="but the champion is now version 2"):
        decide(world, 3)
    assert Registry(world.registry.uri, world.workdir).find("tiny@champion").version == "2"


def test_a_deployment_needs_weights_that_a_cluster_can_read(world, tmp_path):
    repository = write_repository(tmp_path / "repository")
    with pytest.raises(ConfigError, match="which a cluster cannot read. Train with storage.uri=s3://"):
        decide(world, 1, gitops=str(repository))
    assert git(repository, "log", "--format=%s") == "Cluster state"
