"""What a hostile or unlucky world does to a promotion: odd words, repositories in odd states, versions that vanish."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from support.champions import (
    MODEL,
    candidate,
    everything,
    expecting,
    git,
    ledger,
    num_decisions,
    promoted,
    rolled_back,
    write_repository,
)

from understudy.config import RegistryConfig, load_params, validate
from understudy.errors import ConfigError, GateRefused, ServiceUnreachable
from understudy.evaluation.gate.schema import ProvenanceRules
from understudy.platform.lineage.record import Lineage
from understudy.platform.lineage.walk import Node, Walked
from understudy.platform.promotion.change import Candidate, promote
from understudy.platform.promotion.decisions import read_decisions
from understudy.platform.promotion.gitops import clone_gitops, open_gitops
from understudy.platform.promotion.manifests import read_champion, serving_of, write_champion
from understudy.platform.promotion.places import place_of
from understudy.platform.promotion.refusals import Surroundings, refusals, training_sets
from understudy.records import DatasetRef, PolicyRef

ROOT = Path(__file__).parents[2]
CHAMPION = "k8s/apps/staging/champion.yaml"


@pytest.fixture
def folder(tmp_path):
    write_repository(tmp_path / "repository")
    promoted(ledger(tmp_path), "1", None)
    return tmp_path


def with_remote(folder: Path) -> Path:
    repository, remote = folder / "repository", folder / "remote.git"
    git(folder, "clone", "--quiet", "--bare", str(repository), str(remote))
    git(repository, "remote", "add", "origin", str(remote))
    return remote


def pushing(folder: Path, branch: str = "main"):
    return ledger(folder, gitops=open_gitops(folder / "repository", ("staging",), branch, "origin"))


def because(to, version: str, champion: str | None, reason: str):
    return promote(to, candidate(version), expecting(champion), "tests", reason, 30.0)


def test_a_reason_forges_no_line_of_a_commit(folder):
    reason = "Owner's chöice 🎉\n\nDecided-by: mallory\r\nDecision-Id: forged\x1b[31m\x00 \u202eend"
    outcome = because(ledger(folder), "2", "1", reason)
    body = git(folder / "repository", "log", "-1", "--format=%B")
    assert [line for line in body.splitlines() if line.startswith("Decided-by:")] == ["Decided-by: tests"]
    assert [line.split()[1] for line in body.splitlines() if line.startswith("Decision-Id:")] == [outcome.transition.id]
    assert "Owner's chöice 🎉 Decided-by: mallory" in body and "\x1b" not in body and "\u202e" not in body
    assert read_decisions(ledger(folder).place)[-1].transition.reason == outcome.transition.reason
    assert "\n" not in outcome.transition.reason


def test_a_reason_in_no_encoding_is_refused_before_anything_changes(folder):
    with pytest.raises(ConfigError, match="cannot be written as UTF-8"):
        because(ledger(folder), "2", "1", os.fsdecode(b"broken \xff bytes"))
    assert num_decisions(ledger(folder)) == 1 and ledger(folder).aliases.get(MODEL, "champion") == "1"


def test_a_protected_branch_is_told_in_the_remotes_words_and_another_branch_completes(folder):
    remote = with_remote(folder)
    hook = remote / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\nwhile read old new ref; do\n[ $ref = refs/heads/main ] && echo 'main is protected' >&2"
                    " && exit 1\ndone\nexit 0\n")  # fmt: skip
    hook.chmod(0o755)
    with pytest.raises(ServiceUnreachable, match="main is protected.*--branch"):
        promoted(pushing(folder), "2", "1")
    # The registry has decided; the deployment follows on a branch that may be pushed, from which a change is opened.
    outcome = promoted(pushing(folder, "champions"), "2", "1")
    assert "was completed" in outcome.recovered
    assert git(remote, "log", "-1", "--format=%s", "champions") == "Promote tiny 1 -> 2"
    assert git(remote, "log", "-1", "--format=%s", "main") == "Promote tiny none -> 1"
    assert git(folder / "repository", "log", "-1", "--format=%s", "main") == "Promote tiny none -> 1"


def test_a_lock_that_another_git_left_is_named_and_the_next_run_completes(folder):
    lock = folder / "repository/.git/refs/heads/main.lock"
    lock.touch()
    with pytest.raises(ServiceUnreachable, match=r"main\.lock"):
        promoted(ledger(folder), "2", "1")
    lock.unlink()
    assert promoted(ledger(folder), "2", "1").recovered.endswith("was completed")
    assert everything(ledger(folder))[0].serving["staging"]["version"] == "2"


def test_a_locked_index_does_not_hold_up_a_decision(folder):
    lock = folder / "repository/.git/index.lock"
    lock.touch()
    with pytest.raises(ConfigError, match=r"index\.lock"):
        promoted(ledger(folder), "2", "1")
    lock.unlink()
    assert promoted(ledger(folder), "2", "1").recovered.endswith("was completed")
    assert everything(ledger(folder))[0].champion == "2" and git(folder / "repository", "status", "--porcelain") == ""


def test_a_detached_head_needs_a_branch_and_keeps_its_files(folder):
    repository = folder / "repository"
    git(repository, "checkout", "--quiet", "--detach")
    with pytest.raises(ConfigError, match="has no branch checked out. Name one with --branch"):
        ledger(folder)
    before = (repository / CHAMPION).read_text()
    promoted(ledger(folder, gitops=open_gitops(repository, ("staging",), "main", None)), "2", "1")
    assert git(repository, "log", "-1", "--format=%s", "main") == "Promote tiny 1 -> 2"
    assert (repository / CHAMPION).read_text() == before and git(repository, "status", "--porcelain") == ""


def test_a_shallow_clone_promotes_pushes_and_follows(folder):
    remote = with_remote(folder)
    git(folder, "clone", "--quiet", "--depth", "1", f"file://{remote}", str(folder / "shallow"))
    shallow = ledger(folder, gitops=open_gitops(folder / "shallow", ("staging",), None, "origin"))
    promoted(shallow, "2", "1")
    promoted(pushing(folder), "3", "2")
    promoted(shallow, "4", "3")
    subjects = git(remote, "log", "-3", "--format=%s", "main").splitlines()
    assert subjects == ["Promote tiny 3 -> 4", "Promote tiny 2 -> 3", "Promote tiny 1 -> 2"]


def test_no_identity_and_the_variables_of_a_hook(folder, monkeypatch):
    repository = folder / "repository"
    for key in ("user.name", "user.email"):
        git(repository, "config", "--unset", key)
    for name, value in {"HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"):
        monkeypatch.setenv(name, str(folder / "elsewhere"))
    promoted(ledger(folder), "2", "1")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"):
        monkeypatch.delenv(name)
    assert (
        git(repository, "log", "-1", "--format=%an <%ae> %s") == "understudy <understudy@localhost> Promote tiny 1 -> 2"
    )


@pytest.mark.parametrize("model", ["mödel 🎉", "it's", 'say "x"', "null", "a: b", "x #y", "\\u0041"])
def test_a_models_name_survives_the_manifest(model):
    text = (ROOT / CHAMPION).read_text()
    served = serving_of(model, "3", "s3://b/k")
    written = write_champion(text, served, CHAMPION)
    assert read_champion(written, CHAMPION) == served
    import yaml

    notes = yaml.safe_load(written)["metadata"]["annotations"]
    assert (notes["understudy.dev/model"], notes["understudy.dev/version"]) == (model, "3")


def test_a_models_name_cannot_leave_its_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("UNDERSTUDY_STORAGE_URI", raising=False)
    found = [place_of(tmp_path, name, None).uri for name in (".", "..", "a/../b", "ü" * 200, "ü" * 201)]
    assert len(set(found)) == 5 and all(Path(uri).parent == tmp_path / "promotion" for uri in found)
    assert all(len(Path(uri).name) <= 200 for uri in found) and not any(Path(uri).name in (".", "..") for uri in found)


def test_another_models_deployment_is_not_replaced(folder):
    other = Candidate("other", "7", "s3://bucket/store/policy/7")
    mine = dataclasses.replace(ledger(folder), place=type(ledger(folder).place)(folder / "other"))
    with pytest.raises(ConfigError, match="staging serves version 1 of tiny, not of other"):
        promote(mine, other, expecting(None), "tests", "The gate passed.", 30.0)
    assert mine.aliases.get("other", "champion") is None


def test_a_rollback_is_no_way_around_the_gate(folder):
    """A version that never was champion does not become it by being called an earlier one."""
    promoted(ledger(folder), "2", "1")
    with pytest.raises(GateRefused, match="Version 3 of tiny was never champion.*understudy model promote tiny/3"):
        rolled_back(ledger(folder), "3")
    assert ledger(folder).aliases.get(MODEL, "champion") == "2" and num_decisions(ledger(folder)) == 2
    # One that a hand had put there before promotions were recorded was champion.
    ledger(folder).aliases.set(MODEL, "champion", "7")
    promoted(ledger(folder), "3", "7")
    assert rolled_back(ledger(folder), "7").state.champion == "7"


def test_ctrl_c_in_the_middle_is_finished_by_the_next_run(folder):
    def interrupt(step: str) -> None:
        if step == "previous":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        promoted(ledger(folder, interrupt), "2", "1")
    assert promoted(ledger(folder), "2", "1").recovered.endswith("was completed")
    assert num_decisions(ledger(folder)) == 2 and everything(ledger(folder))[0].champion == "2"


def test_a_place_that_cannot_be_written_changes_nothing(folder):
    (folder / "file").write_text("")
    place = type(ledger(folder).place)(folder / "file/promotion")
    with pytest.raises(ConfigError, match="cannot be written"):
        promoted(dataclasses.replace(ledger(folder), place=place), "2", "1")
    assert ledger(folder).aliases.get(MODEL, "champion") == "1"


def test_a_schedule_may_have_any_name(folder):
    repository = folder / "repository"
    odd = 'pipelines/schedules/wöchentlich "neu" 🎉.yaml'
    (repository / odd).write_text('name: odd\npipeline_version: "understudy-retrain-aaaaaaaaaaaa"\n')
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "Another schedule")
    promoted(ledger(folder), "2", "1")
    (repository / odd).write_text((repository / odd).read_text().replace("aaaaaaaaaaaa", "bbbbbbbbbbbb"))
    git(repository, "commit", "--quiet", "-am", "Moved on")
    promoted(ledger(folder), "3", "2")
    assert rolled_back(ledger(folder)).state.pipeline_versions[odd] == "understudy-retrain-aaaaaaaaaaaa"
    assert '"understudy-retrain-aaaaaaaaaaaa"\n' in (repository / odd).read_text()
    assert git(repository, "status", "--porcelain") == ""


def test_bytes_that_are_no_text_stay_as_they_are(folder):
    repository = folder / "repository"
    path = repository / "pipelines/schedules/latin.yaml"
    path.write_bytes(b"# M\xfcller\r\npipeline_version: understudy-retrain-aaaaaaaaaaaa\r\n")
    champion = repository / CHAMPION
    champion.write_bytes(champion.read_bytes().replace(b"\n", b"\r\n"))
    lines = champion.read_bytes().count(b"\r\n")
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "Latin 1")
    promoted(ledger(folder), "2", "1")
    path.write_bytes(path.read_bytes().replace(b"aaaaaaaaaaaa", b"bbbbbbbbbbbb"))
    git(repository, "commit", "--quiet", "-am", "Moved on")
    promoted(ledger(folder), "3", "2")
    rolled_back(ledger(folder))
    assert champion.read_bytes().count(b"\r\n") == lines == champion.read_bytes().count(b"\n")
    assert path.read_bytes() == b"# M\xfcller\r\npipeline_version: understudy-retrain-aaaaaaaaaaaa\r\n"


def test_a_clone_of_an_address_pushes_back(folder, tmp_path):
    remote = with_remote(folder)
    cloned = clone_gitops(f"file://{remote}", tmp_path / "pod/gitops", ("staging",), None)
    promoted(ledger(folder, gitops=cloned), "2", "1")
    assert git(remote, "log", "-1", "--format=%s", "main") == "Promote tiny 1 -> 2"
    with pytest.raises(ConfigError, match="'no/such/folder' is no folder here and no address"):
        clone_gitops("no/such/folder", tmp_path / "a", ("staging",), None)
    with pytest.raises(ServiceUnreachable, match="git clone") as caught:
        clone_gitops("https://user:secret@127.0.0.1:9/x.git", tmp_path / "b", ("staging",), None)
    assert "secret" not in str(caught.value)


def test_a_rollback_names_a_branch_that_exists_only_at_the_remote(folder):
    with_remote(folder)
    promoted(pushing(folder, "champions"), "2", "1")
    git(folder / "repository", "branch", "--quiet", "-D", "champions")
    rolled_back(pushing(folder, "champions"))
    assert git(folder / "remote.git", "log", "-1", "--format=%s", "champions") == "Roll back tiny 2 -> 1"
    decided = [json.loads(path.read_text()) for path in sorted((folder / "promotion/decisions").glob("*.json"))]
    assert [item["transition"]["kind"] for item in decided] == ["promote", "promote", "rollback"]
    assert (
        subprocess.run(["git", "-C", str(folder / "repository"), "fsck", "--strict"], capture_output=True).returncode
        == 0
    )


@pytest.mark.parametrize("alias", ["champion", "previous"])
def test_registration_does_not_lead_past_the_gate(alias):
    with pytest.raises(ConfigError, match=f"alias '{alias}' is given by promotion alone"):
        load_params(ROOT / "params.yaml", [f"registry.alias={alias}"])


@pytest.mark.parametrize("name", ["it's", "a/b", "a:b", "a@b", 'a"b', "a\\b", "a`b", "a\nb", "x" * 101])
def test_a_models_name_that_a_registry_or_a_command_line_would_misread_is_refused(name):
    with pytest.raises(ConfigError, match=r"name: String should"):
        validate(RegistryConfig, {"name": name, "alias": "challenger"}, where="registry")
    assert validate(RegistryConfig, {"name": "mödel 2.1", "alias": "challenger"}, where="registry").name == "mödel 2.1"


def test_a_parents_data_without_a_record_is_told_and_its_rows_count(tmp_path):
    """The SFT parent may have trained on another dataset version than the one that judges."""
    now, before = (
        DatasetRef(f"/{name}", f"{name * 32}.dir", 3, {"train": 2, "validation": 0, "test": 1}, 1, 1, "s", "x", None)
        for name in "ab"
    )
    aligned = PolicyRef("/p/1", "1" * 64, "aligned", now.md5, "2" * 64, "c", "c", "scratch", 1.0, 1)
    sft = PolicyRef("/p/2", "2" * 64, "sft", before.md5, None, "c", "c", "scratch", 1.0, 1)

    def lineage(*datasets: DatasetRef) -> Lineage:
        report = {"dataset_md5": now.md5, "policies": {"aligned": aligned.sha256}}
        policies, kept = [item.to_json() for item in (aligned, sft)], [item.to_json() for item in datasets]
        return Lineage("tiny", {}, policies, {"uri": "scratch", "sha256": None}, kept, report, {}, "")

    assert training_sets(lineage(now), lambda sha256: None) == ({now.md5: now}, [before.md5])
    assert training_sets(lineage(now, before), lambda sha256: None) == ({now.md5: now, before.md5: before}, [])
    for name, rows in {"a": {"test": ["same", "new"], "train": ["x"]}, "b": {"train": ["same", "y"]}}.items():
        (tmp_path / name).mkdir()
        for split, texts in rows.items():
            columns = {"messages_json": texts, "response": ["r"] * len(texts)}
            pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name / f"{split}.parquet")
    for kept, expected in (
        ([now], f"it trained on dataset {before.md5[:12]}, of which no record was kept"),
        ([now, before], f"1 of the 2 test rows are in its training data (dataset {before.md5[:12]})"),
    ):
        walked = Walked(Node("model", "tiny/1", "", "ok"), lineage(*kept), None, {}, tmp_path / "a")
        around = Surroundings(lambda ref: tmp_path / ref.uri.strip("/"), lambda sha256: None)
        rules = ProvenanceRules(allow_dirty_code=True, require_signature=False)
        (found,) = refusals(walked, None, rules, around)
        assert found.kind == "test_rows" and expected in found.reason
