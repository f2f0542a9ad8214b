"""Promotion on a real MLflow registry, from the command line: who passes, who is refused, and why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.lineages import COMMIT, World, write_keys

from understudy import cli
from understudy.platform.promotion.decisions import read_decisions
from understudy.platform.promotion.places import LocalPlace
from understudy.platform.registry import Registry


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("UNDERSTUDY_", "MLFLOW_", "AWS_", "DVC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path / "work"))
    monkeypatch.setenv("UNDERSTUDY_GIT_COMMIT", COMMIT)


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory):
    """A registry without models; making one takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("empty")
    Registry(f"sqlite:///{folder}/mlflow.db", folder)
    return folder / "mlflow.db"


@pytest.fixture
def world(tmp_path, empty_registry):
    (tmp_path / "work").mkdir()
    shutil.copyfile(empty_registry, tmp_path / "work/mlflow.db")
    return World(tmp_path)


def call(*arguments) -> int:
    command = ["model", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["understudy", *command])
        return cli.call(command)


def promote(world: World, version, *more, **provenance) -> int:
    gate = world.gate(**provenance)
    return call("promote", f"tiny/{version.version}", "--gate", gate, "--workdir", world.workdir, *more)


def aliases(world: World) -> dict[str, str]:
    return {alias: version.version for version in world.registry.versions("tiny") for alias in version.aliases}


def test_the_story_of_three_versions(world, capsys):
    """v1 first champion, v2 better, v3 not better: refused with numbers, approved by a person, rolled back."""
    first = world.register("first")
    assert promote(world, first) == 0
    second = world.register("second", quality=0.9, champion=first)
    assert promote(world, second) == 0
    assert (aliases(world)["champion"], aliases(world)["previous"]) == ("2", "1")
    assert promote(world, second) == 0
    capsys.readouterr()
    third = world.register("third", quality=0.5, champion=second)
    assert promote(world, third) == 4
    said = capsys.readouterr().err
    assert "tiny/3 is not promoted: the gate's verdict is" in said and "judge:quality (tuned)" in said
    assert (aliases(world)["champion"], aliases(world)["previous"]) == ("2", "1")
    assert promote(world, third, "--approve", "The owner wants its style.", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    evidence = told["transition"]["evidence"]
    assert told["transition"]["reason"] == "The owner wants its style."
    assert evidence["approved_by_person"] and evidence["verdict"] in ("fail", "not_enough_evidence")
    assert evidence["weights_sha256"] == third.tags["weights_sha256"] and len(evidence["gate_sha256"]) == 64
    assert call("rollback", "tiny", "--workdir", world.workdir) == 0
    assert (aliases(world)["champion"], aliases(world)["previous"]) == ("2", "1")
    records = read_decisions(LocalPlace(world.workdir / "promotion/tiny"))
    assert [(item.transition.kind, item.transition.state_after.champion) for item in records] == [
        ("promote", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "2"),
    ]  # fmt: skip
    # Evaluated against version 2 before it was first replaced, and it is champion again: nothing has changed for v4.
    assert promote(world, world.register("fourth", quality=0.9, champion=second)) == 0


def test_a_person_may_decide_where_the_gate_cannot(world, capsys):
    first = world.register("first")
    assert promote(world, first) == 0
    second = world.register("second", quality=0.9, champion=first)
    gate = world.gate()
    gate.write_text(gate.read_text().replace("judge:quality", "judge:other"))
    command = ("promote", "tiny/2", "--gate", gate, "--workdir", world.workdir)
    assert call(*command) == 4
    assert "judge:other" in capsys.readouterr().err and aliases(world)["champion"] == "1"
    assert call(*command, "--approve", "There was no such judge yet.", "--json") == 0
    evidence = json.loads(capsys.readouterr().out)["transition"]["evidence"]
    assert evidence["verdict"] == "not_decided" and "judge:other" in evidence["decision"]["headline"]
    assert aliases(world)["champion"] == second.version


def test_a_champion_that_changed_since_the_evaluation(world, capsys):
    first = world.register("first")
    challengers = [world.register(name, quality=0.9, champion=first) for name in ("second", "third")]
    alone = world.register("alone")
    assert promote(world, challengers[0]) == 4
    assert "it was compared with champion" in capsys.readouterr().err  # and there is none yet
    assert promote(world, first) == 0
    assert promote(world, challengers[0]) == 0
    capsys.readouterr()
    assert promote(world, challengers[1], "--approve", "I insist") == 4
    said = capsys.readouterr().err
    assert f"compared with champion {first.tags['weights_sha256'][:12]}, but the champion is now version 2" in said
    assert "These do not give way to --approve" in said
    assert promote(world, alone) == 4
    assert "compared with no champion, but the champion is now version 2" in capsys.readouterr().err
    assert (aliases(world)["champion"], aliases(world)["previous"]) == ("2", "1")


def test_all_reasons_are_told_at_once(world, monkeypatch, capsys):
    """Dirty and unpinned code, no signature, damaged weights, a wrong champion: five reasons in one refusal."""
    first = world.register("first")
    assert promote(world, first) == 0
    monkeypatch.setenv("UNDERSTUDY_GIT_COMMIT", "main")
    monkeypatch.setenv("UNDERSTUDY_IMAGE_DIGEST", "latest")
    second = world.register("second")
    (file,) = world.workdir.glob(f"store/policy/{second.tags['weights_sha256']}/model.safetensors")
    file.chmod(0o644)
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    capsys.readouterr()
    assert promote(world, second, require_signature=True) == 4
    said = capsys.readouterr().err
    assert "tiny/2 is not promoted, for 5 reasons:" in said
    for line in (
        "- integrity: policy aligned: ",
        "- champion: it was compared with no champion",
        "- code: its code is not pinned: git_commit is 'main'",
        "- code: its image is not pinned: 'latest'",
        "- signature: no trusted key signed its provenance",
    ):
        assert line in said
    file.chmod(0o644)
    assert promote(world, second, allow_dirty_code=True, require_signature=False) == 4
    assert "for 2 reasons" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["true", "unknown"])
def test_dirty_code_unless_the_gate_allows_it(world, monkeypatch, capsys, state):
    from understudy.platform.steps import register

    monkeypatch.setattr(register, "code_origin", lambda: {"git_commit": COMMIT, "git_dirty": state})
    first = world.register("first")
    assert promote(world, first) == 4
    assert f"its code is dirty: git_dirty is '{state}'" in capsys.readouterr().err
    assert promote(world, first, allow_dirty_code=True) == 0


@pytest.mark.parametrize("kind", ["policy", "report", "dataset", "registered", "parent"])
def test_a_digest_that_differs(world, kind, capsys):
    first = world.register("first")
    tags = first.tags
    patterns = {
        "policy": f"store/policy/{tags['weights_sha256']}/model.safetensors",
        "parent": f"store/policy/{tags['parent_sha256']}/model.safetensors",
        "report": f"store/report/{tags['report_sha256']}/report.json",
        "dataset": f"dvc-remote/files/md5/{tags['dataset_md5'][:2]}/*.dir",
        "registered": "mlartifacts/models/*/artifacts/MLmodel",
    }
    (file,) = world.workdir.glob(patterns[kind])
    whole = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(whole + b" ")
    assert promote(world, first, "--approve", "I insist") == 4
    said = capsys.readouterr().err
    named = {"policy": "policy aligned", "parent": "policy sft", "registered": "model tiny/1"}.get(kind, kind)
    assert f"- integrity: {named}" in said
    assert "champion" not in aliases(world)
    file.write_bytes(whole)
    assert promote(world, first) == 0


def test_a_required_signature(world, tmp_path, monkeypatch, capsys):
    private, public = write_keys(tmp_path)
    _, stranger = write_keys(tmp_path, "stranger")
    unsigned = world.register("first")
    monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", str(public))
    assert promote(world, unsigned, require_signature=True) == 4
    assert call("provenance", "tiny/1", "--sign", "--workdir", world.workdir) == 2
    assert "There is no key to sign with" in capsys.readouterr().err
    monkeypatch.setenv("UNDERSTUDY_SIGNING_KEY", str(private))
    assert call("provenance", "tiny/1", "--sign", "--workdir", world.workdir) == 0
    monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", str(stranger))
    assert promote(world, unsigned, require_signature=True) == 4
    assert "None of the 1 trusted keys" in capsys.readouterr().err
    monkeypatch.setenv("UNDERSTUDY_TRUSTED_KEYS", os.pathsep.join(map(str, (stranger, public))))
    assert promote(world, unsigned, require_signature=True) == 0


def test_test_rows_in_the_training_data_of_what_it_was_made_from(world, capsys):
    """A registered model of wider data is the base of the next one, whose test rows it has seen."""
    wide = world.dataset("p")
    first = world.register("first", dataset=wide)
    # Rows that were train rows of the first version's data are test rows of the second's.
    from understudy.data.demonstrations import load_split

    folder = world.workdir / "datasets" / wide.md5.removesuffix(".dir")
    seen = load_split(folder, "train")[:30]
    lines = [
        json.dumps({"prompt": row.prompt, "response": row.response, "group": f"g{i}"}) for i, row in enumerate(seen)
    ]
    lines += [json.dumps({"prompt": f"new{i}", "response": f"r{i}"}) for i in range(90)]
    (world.folder / "narrow.jsonl").write_text("\n".join(lines) + "\n")
    narrow = world.dataset("narrow")
    test = load_split(world.workdir / "datasets" / narrow.md5.removesuffix(".dir"), "test")
    overlap = len({row.prompt for row in test} & {row.prompt for row in seen})
    assert overlap > 0
    second = world.register("second", dataset=narrow, base=first.tags["weights_uri"])
    assert promote(world, second, "--approve", "I insist") == 4
    said = capsys.readouterr().err
    assert (
        f"- test_rows: {overlap} of the {len(test)} test rows are in its training data (dataset {wide.md5[:12]})"
        in said
    )
    assert promote(world, world.register("third", dataset=narrow)) == 0


RACE = """
import sys
from pathlib import Path
from support.champions import expecting
from understudy.errors import GateRefused
from understudy.platform.promotion.aliases import MlflowAliases
from understudy.platform.promotion.change import Candidate, promote
from understudy.platform.promotion.places import LocalPlace
from understudy.platform.promotion.transition import Ledger
from understudy.platform.registry import Registry

folder, version, races = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
registry = Registry(f"sqlite:///{folder}/mlflow.db", folder)
(folder / f"ready-{version}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    pass
for number in range(races):
    name = f"m{number}"
    ledger = Ledger(MlflowAliases(registry), LocalPlace(folder / "promotion" / name))
    try:
        promote(ledger, Candidate(name, version, "u"), expecting("1"), "tests", "race", 60.0)
        print(name, "won", version)
    except GateRefused:
        print(name, "refused", version)
"""


def test_races_of_two_processes_on_a_real_registry(tmp_path, empty_registry):
    import mlflow

    races = 8
    shutil.copyfile(empty_registry, tmp_path / "mlflow.db")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    for number in range(races):
        client.create_registered_model(f"m{number}")
        for _ in range(3):
            client.create_model_version(f"m{number}", str(tmp_path / "weights"))
        client.set_registered_model_alias(f"m{number}", "champion", "1")
    path = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parents[2])))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), version, str(races)],
            env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True,
        )
        for version in ("2", "3")
    ]  # fmt: skip
    lines = [line.split() for process in started for line in process.communicate(timeout=300)[0].splitlines()]
    for number in range(races):
        ended = {how: version for name, how, version in lines if name == f"m{number}"}
        assert sorted(ended) == ["refused", "won"], ended
        found = client.get_registered_model(f"m{number}").aliases
        assert {alias: str(version) for alias, version in found.items()} == {"champion": ended["won"], "previous": "1"}
