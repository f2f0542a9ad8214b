"""Champion and back: every crash ends in the old or the new state, races have one winner, rollback is the inverse."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.champions import (
    MODEL,
    PINS,
    SCHEDULE,
    candidate,
    everything,
    git,
    ledger,
    num_decisions,
    pin,
    promoted,
    rolled_back,
    write_repository,
)

from understudy.errors import ConfigError, GateRefused, IntegrityError, WorkdirBusy
from understudy.platform.promotion import lease
from understudy.platform.promotion.decisions import read_decisions
from understudy.platform.promotion.gitops import GitOps, open_gitops
from understudy.platform.promotion.journal import pending
from understudy.platform.promotion.places import LocalPlace
from understudy.platform.promotion.transition import STEPS, recover


class Crash(BaseException):
    """Ends a process as a power cut would, as far as Python can."""


@pytest.fixture
def folder(tmp_path):
    """Version 1 is champion and deployed; then a person moved the schedule on."""
    write_repository(tmp_path / "repository")
    promoted(ledger(tmp_path), "1", None)
    pin(tmp_path / "repository", PINS["2"])
    return tmp_path


def crash_at(step: str):
    def on_step(done: str) -> None:
        if done == step:
            raise Crash

    return on_step


def states(folder: Path, kind: str):
    """What holds before and after a change, found by doing it to the end and taking it back by hand."""
    if kind == "rollback":
        promoted(ledger(folder), "2", "1")
    before = everything(ledger(folder))
    return before


def act(folder: Path, kind: str, **arguments):
    to = ledger(folder, **arguments)
    return promoted(to, "2", "1") if kind == "promote" else rolled_back(to)


def is_whole(folder: Path, champion: str) -> None:
    """Alias, deployed version, URI, pin and previous all belong to the one state."""
    state, files = everything(ledger(folder))
    served = state.serving["staging"]
    assert (state.champion, served["version"], served["uri"]) == (champion, champion, candidate(champion).uri)
    assert state.previous == {"1": None, "2": "1"}[champion]
    assert f'understudy.dev/version: "{champion}"' in files["k8s/apps/staging/champion.yaml"]


@pytest.mark.parametrize("kind", ["promote", "rollback"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_after_any_step_leaves_the_old_or_the_new_state(folder, kind, step):
    states(folder, kind)
    old, new = ("1", "2") if kind == "promote" else ("2", "1")
    decisions = num_decisions(ledger(folder))
    with pytest.raises(Crash):
        act(folder, kind, on_step=crash_at(step))
    # Whoever looks at the registry sees one of the two, and the deployment never runs ahead of it.
    at_crash = ledger(folder).aliases.get(MODEL, "champion")
    assert at_crash == (old if step == "journal" else new)
    repository = folder / "repository"
    deployed = ledger(folder).gitops.read()[0]["staging"]["version"]
    assert deployed == (new if step in ("commit", "closed") else old)
    outcome = recover(ledger(folder))
    assert (outcome and outcome[0]) == {"journal": "undone", "closed": None}.get(step, "completed")
    is_whole(folder, at_crash)
    assert num_decisions(ledger(folder)) == decisions + (at_crash == new)
    commits = git(repository, "log", "--format=%B").count("Decision-Id:")
    assert commits == decisions + (at_crash == new)


@pytest.mark.parametrize("kind", ["promote", "rollback"])
def test_kill_9_after_any_step(folder, kind):
    states(folder, kind)
    old, new = ("1", "2") if kind == "promote" else ("2", "1")
    program = Path(__file__).parents[1] / "support/champions.py"
    environment = os.environ | {"PYTHONPATH": str(program.parents[2])}
    for step in ("journal", "champion", "decision", "commit"):
        command = [sys.executable, str(program), str(folder), kind, step]
        done = subprocess.run(command, env=environment, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        # The next run of the same command, in a process that knows nothing of the first.
        outcome = act(folder, kind) if kind == "promote" else recover(ledger(folder))
        expected = "undone" if step == "journal" else "completed"
        assert expected in (outcome.recovered if kind == "promote" else outcome[0])
        if kind == "rollback" and step == "journal":
            act(folder, kind)
        is_whole(folder, new)
        if kind == "promote":
            rolled_back(ledger(folder))
        else:
            promoted(ledger(folder), "2", "1")
        is_whole(folder, old)


@pytest.mark.parametrize("method", ["_build", "_publish", "_follow", "_check_out"])
def test_a_crash_inside_the_commit(folder, monkeypatch, method):
    whole = getattr(GitOps, method)

    def crash(self, *arguments, **named):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(GitOps, method, crash)
        with pytest.raises(Crash):
            act(folder, "promote")
    assert getattr(GitOps, method) is whole
    assert act(folder, "promote").recovered.endswith("completed")
    is_whole(folder, "2")
    assert git(folder / "repository", "log", "--format=%s").count("Promote tiny 1 -> 2") == 1


def test_a_champion_moved_by_hand_during_a_crash_is_said(folder):
    with pytest.raises(Crash):
        act(folder, "promote", on_step=crash_at("journal"))
    ledger(folder).aliases.set(MODEL, "champion", "7")
    with pytest.raises(IntegrityError, match="from version 1 to 2 was cut off, and @champion is 7 by now"):
        promoted(ledger(folder), "3", "7")


def test_a_cut_off_deployment_is_not_forgotten_without_the_repository(folder):
    with pytest.raises(Crash):
        act(folder, "promote", on_step=crash_at("decision"))
    bare = dataclasses.replace(ledger(folder), gitops=None)
    with pytest.raises(ConfigError, match="that deploys to staging was cut off. Name the repository with --gitops"):
        promoted(bare, "3", "2")


def race(folder: Path, place=None) -> list[str]:
    """Versions 4 and 5, both evaluated against champion 2, in two threads; return how each ended."""
    ready, ended = threading.Barrier(2), []

    def one(version: str) -> None:
        mine = ledger(folder) if place is None else dataclasses.replace(ledger(folder), place=place)
        ready.wait()
        try:
            promoted(mine, version, "2")
            ended.append(version)
        except GateRefused as error:
            assert "compared with 2, the champion is now" in str(error)
            ended.append("refused")

    threads = [threading.Thread(target=one, args=(version,)) for version in ("4", "5")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


@pytest.mark.slow
def test_200_races_have_one_winner_each_and_none_is_lost(tmp_path):
    winners = []
    for number in range(200):
        folder = tmp_path / str(number)
        promoted(ledger(folder), "2", None)
        ended = sorted(race(folder))
        assert ended in (["4", "refused"], ["5", "refused"])
        winner = ended[0]
        aliases = ledger(folder).aliases
        assert (aliases.get(MODEL, "champion"), aliases.get(MODEL, "previous")) == (winner, "2")
        recorded = [item.transition.state_after.champion for item in read_decisions(ledger(folder).place)]
        assert recorded == ["2", winner] and pending(ledger(folder).place) is None
        winners.append(winner)
    assert len(winners) == 200


class Bucket(LocalPlace):
    """Conditional writes and nothing else, as a bucket has them: no lock to fall back on."""


def test_races_over_conditional_writes_have_one_winner_each(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LocalPlace", type("Other", (), {}))
    for number in range(20):
        folder = tmp_path / str(number)
        place = Bucket(folder / "bucket")
        promoted(dataclasses.replace(ledger(folder), place=place), "2", None)
        assert sorted(race(folder, place))[1] == "refused"
        assert len(read_decisions(place)) == 2


def test_a_lease_that_expired_is_taken_over_and_its_holder_stops(tmp_path):
    place = LocalPlace(tmp_path)
    with lease.conditional_lease(place, "first", lifetime_seconds=0.2) as confirm:
        confirm()
        with lease.conditional_lease(place, "second", wait_seconds=5.0):
            with pytest.raises(WorkdirBusy, match="was taken over while first worked; nothing more was changed"):
                confirm()
            with pytest.raises(WorkdirBusy, match=r"is being changed by second \(since 2.*not free within 0 s"):
                with lease.conditional_lease(place, "third", wait_seconds=0.0):
                    raise AssertionError
    with lease.conditional_lease(place, "fourth", wait_seconds=0.0):
        assert json.loads(place.read(lease.NAME).data)["owner"] == "fourth"


def test_a_local_lease_names_its_owner_and_ends_with_it(tmp_path):
    with lease.local_lease(tmp_path, "ann@laptop"):
        with pytest.raises(WorkdirBusy, match=r"by ann@laptop \(since .*, until .*\)"):
            with lease.local_lease(tmp_path, "ben", wait_seconds=0.0):
                raise AssertionError
    with lease.local_lease(tmp_path, "ben", wait_seconds=0.0):
        pass


def test_rollback_is_the_exact_inverse(folder):
    """v1, then pins move, v2, v3; each rollback gives the bytes, aliases and pins of before."""
    repository = folder / "repository"
    after = {}
    promoted(ledger(folder), "2", "1")
    after["2"] = everything(ledger(folder))
    pin(repository, "understudy-retrain-cccccccccccc")
    promoted(ledger(folder), "3", "2")
    assert everything(ledger(folder))[0].pipeline_versions == {SCHEDULE: "understudy-retrain-cccccccccccc"}
    before = int(git(repository, "rev-list", "--count", "HEAD"))
    outcome = rolled_back(ledger(folder))
    assert everything(ledger(folder)) == after["2"]
    assert int(git(repository, "rev-list", "--count", "HEAD")) == before + 1
    changed = git(repository, "show", "--name-only", "--format=", outcome.applied.commit).splitlines()
    assert sorted(changed) == ["k8s/apps/staging/champion.yaml", SCHEDULE]
    rolled_back(ledger(folder))
    is_whole(folder, "1")
    assert f"pipeline_version: {PINS['1']}  # reviewed\n" in (repository / SCHEDULE).read_text()
    with pytest.raises(ConfigError, match="Version 1 is the first champion of tiny.*say --to none"):
        rolled_back(ledger(folder))


def test_rollback_to_none_and_to_a_named_version(folder):
    repository = folder / "repository"
    pristine = git(
        repository, "show", f"{git(repository, 'rev-list', '--max-parents=0', 'HEAD')}:k8s/apps/staging/champion.yaml"
    )
    promoted(ledger(folder), "2", "1")
    promoted(ledger(folder), "3", "2")
    rolled_back(ledger(folder), "1")
    is_whole(folder, "1")
    rolled_back(ledger(folder), "none")
    state, files = everything(ledger(folder))
    assert (state.champion, state.previous) == (None, None)
    assert files["k8s/apps/staging/champion.yaml"] == pristine + "\n"
    with pytest.raises(ConfigError, match="tiny has no champion, so there is nothing to roll back"):
        rolled_back(ledger(folder))


def test_a_rollback_may_not_leave_an_environment_behind(folder):
    promoted(ledger(folder, environments=("staging", "production")), "2", "1")
    with pytest.raises(ConfigError, match="deployed to production too.*--environment production --environment staging"):
        rolled_back(ledger(folder))
    rolled_back(ledger(folder, environments=("staging", "production")))
    # Production served nothing before, and the inverse of that is nothing.
    assert everything(ledger(folder, environments=("production",)))[0].serving["production"]["version"] == "0"


def test_the_champion_is_deployed_to_a_second_environment(folder):
    assert promoted(ledger(folder), "1", None).applied is None
    outcome = promoted(ledger(folder, environments=("production",)), "1", "1")
    assert (outcome.transition.kind, outcome.state.champion, outcome.state.previous) == ("deploy", "1", None)
    assert git(folder / "repository", "log", "-1", "--format=%s") == "Deploy tiny 1 -> 1"


def test_git_tells_the_story(folder):
    promoted(ledger(folder), "2", "1")
    rolled_back(ledger(folder))
    subjects = git(folder / "repository", "log", "--format=%s", "--reverse").splitlines()
    assert subjects == [
        "Cluster state",
        "Promote tiny none -> 1",
        f"Retrain with {PINS['2']}",
        "Promote tiny 1 -> 2",
        "Roll back tiny 2 -> 1",
    ]
    said = git(folder / "repository", "log", "-1", "--skip=1", "--format=%B")
    record = read_decisions(ledger(folder).place)[1]
    assert f"Decision-Record: 2 sha256:{record.sha256}" in said
    assert "Decided-by: tests" in said and f"Report-sha256: {'5' * 64}" in said


def test_another_branch_and_a_remote(folder, tmp_path):
    repository, remote = folder / "repository", tmp_path / "remote.git"
    git(folder, "clone", "--quiet", "--bare", str(repository), str(remote))
    git(repository, "remote", "add", "origin", str(remote))
    on_branch = ledger(folder, gitops=open_gitops(repository, ("staging",), "champions", "origin"))
    promoted(on_branch, "2", "1")
    assert git(remote, "log", "-1", "--format=%s", "champions") == "Promote tiny 1 -> 2"
    assert git(repository, "status", "--porcelain") == "" and git(repository, "branch", "--show-current") == "main"
    assert 'version: "1"' in (repository / "k8s/apps/staging/champion.yaml").read_text()
    # Somebody else pushes to the branch; the next promotion builds on theirs.
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", "--branch", "champions", str(remote), str(other))
    (other / "README").write_text("theirs\n")
    git(other, "add", "README")
    git(other, "-c", "user.name=O", "-c", "user.email=o@localhost", "commit", "--quiet", "-m", "Theirs")
    git(other, "push", "--quiet")
    promoted(on_branch, "3", "2")
    assert git(remote, "log", "-3", "--format=%s", "champions").splitlines() == [
        "Promote tiny 2 -> 3", "Theirs", "Promote tiny 1 -> 2",
    ]  # fmt: skip


def test_local_changes_are_not_overwritten(folder):
    path = folder / "repository/k8s/apps/staging/champion.yaml"
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(ConfigError, match="has changes that are not committed: M k8s/apps/staging/champion.yaml"):
        promoted(ledger(folder), "2", "1")
    assert ledger(folder).aliases.get(MODEL, "champion") == "1" and path.read_text().endswith("# mine\n")


@pytest.mark.parametrize("damage", ["flip", "remove", "insert"])
def test_a_decision_record_that_was_touched_is_found(folder, damage):
    promoted(ledger(folder), "2", "1")
    promoted(ledger(folder), "3", "2")
    records = folder / "promotion/decisions"
    second = records / "000002.json"
    if damage == "flip":
        second.write_text(second.read_text().replace('"decided_by": "tests"', '"decided_by": "other"'))
    elif damage == "remove":
        second.unlink()
    else:
        (records / "000004.json").write_text(second.read_text())
    with pytest.raises(IntegrityError, match=r"decision record .*/00000[34]\.json (names|follows)"):
        rolled_back(ledger(folder))
