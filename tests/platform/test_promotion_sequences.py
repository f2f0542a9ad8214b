"""Random lives of a model: promotions, rollbacks and crashes in any order leave one truth, in records and in Git."""

from __future__ import annotations

import random
import re

import pytest
from support.champions import MODEL, SCHEDULE, everything, git, ledger, promoted, rolled_back, write_repository

from understudy.errors import ConfigError, GateRefused
from understudy.platform.promotion.decisions import read_decisions
from understudy.platform.promotion.journal import pending
from understudy.platform.promotion.transition import STEPS, current_state, recover


class Crash(BaseException):
    """Ends a process as a power cut would, as far as Python can."""


def live(folder, chance: random.Random) -> list[str]:
    """Do some things to a model, some of which are cut off; return what was done."""
    told = []
    for _ in range(chance.randrange(3, 9)):
        crash_after = chance.choice((*STEPS, *["never"] * 6))

        def on_step(done: str, crash_after: str = crash_after) -> None:
            if done == crash_after:
                raise Crash

        deed, version = (
            chance.choice(["promote", "promote", "rollback", "to", "none", "pin"]),
            str(chance.randrange(1, 7)),
        )
        told.append(f"{deed} {version} {crash_after}")
        to = ledger(folder, on_step)
        try:
            if deed == "promote":
                promoted(to, version, to.aliases.get(MODEL, "champion"))
            elif deed == "pin":
                move_pin(folder, chance)
            else:
                rolled_back(to, {"rollback": None, "to": version, "none": "none"}[deed])
        except Crash:
            told.append("crash")
        except (ConfigError, GateRefused) as error:
            told.append(f"refused: {error}")
        if chance.random() < 0.5:
            recover(ledger(folder))
    recover(ledger(folder))
    return told


def move_pin(folder, chance: random.Random) -> None:
    path = folder / "repository" / SCHEDULE
    if path.exists():
        version = f"understudy-retrain-{chance.randrange(10**11, 10**12)}"
        path.write_text(re.sub(r"pipeline_version: \S+", f"pipeline_version: {version}", path.read_text()))
        git(folder / "repository", "commit", "--quiet", "-am", f"Retrain with {version}")


@pytest.mark.parametrize("seeds", [range(start, start + 25) for start in range(0, 100, 25)], ids=str)
def test_registry_and_records_tell_the_same(tmp_path, seeds):
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        told = live(folder, random.Random(seed))
        state, decisions = current_state(ledger(folder), MODEL), read_decisions(ledger(folder).place)
        assert pending(ledger(folder).place) is None, told
        states = [(item.transition.state_before, item.transition.state_after) for item in decisions]
        if states:
            assert (state.champion, state.previous) == (states[-1][1].champion, states[-1][1].previous), told
        for (_, after), (before, _) in zip(states, states[1:], strict=False):
            assert after.champion == before.champion, told


@pytest.mark.parametrize("seed", range(1000, 1006))
def test_git_tells_the_same_too(tmp_path, seed):
    repository = write_repository(tmp_path / "repository")
    told = live(tmp_path, random.Random(seed))
    state, _ = everything(ledger(tmp_path))
    decisions = read_decisions(ledger(tmp_path).place)
    bodies = git(repository, "log", "--format=%B")
    assert bodies.count("Decision-Id:") == len(decisions) and all(item.transition.id in bodies for item in decisions)
    served = state.serving["staging"]
    if decisions:
        assert (served["version"], served["stop"]) == (
            (state.champion, "false") if state.champion else ("0", "true")
        ), told
    assert git(repository, "status", "--porcelain") == "", told
