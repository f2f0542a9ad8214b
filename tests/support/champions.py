"""A model with three versions, aliases in a file, and a GitOps repository: what promotion changes, without MLflow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from understudy.errors import GateRefused
from understudy.platform.promotion.change import Candidate, Outcome, promote, rollback
from understudy.platform.promotion.decisions import State, read_decisions
from understudy.platform.promotion.gitops import GitOps, open_gitops
from understudy.platform.promotion.journal import pending
from understudy.platform.promotion.places import LocalPlace
from understudy.platform.promotion.transition import Ledger, current_state

ROOT = Path(__file__).parents[2]
MODEL = "tiny"
SCHEDULE = "pipelines/schedules/weekly.yaml"
PINS = {"1": "understudy-retrain-aaaaaaaaaaaa", "2": "understudy-retrain-bbbbbbbbbbbb"}


class FileAliases:
    """Aliases in one JSON file, changed under a lock."""

    def __init__(self, path: Path) -> None:
        self.place, self.name = LocalPlace(path.parent), path.name

    def get(self, model: str, alias: str) -> str | None:
        found = self.place.read(self.name)
        return json.loads(found.data).get(f"{model}@{alias}") if found else None

    def set(self, model: str, alias: str, version: str | None) -> None:
        while True:
            found = self.place.read(self.name)
            aliases = json.loads(found.data) if found else {}
            data = json.dumps(aliases | {f"{model}@{alias}": version}).encode()
            if self.place.replace(self.name, data, found.tag) if found else self.place.create(self.name, data):
                return


def git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(repository), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def write_repository(folder: Path) -> Path:
    for environment in ("staging", "production"):
        path = folder / f"k8s/apps/{environment}/champion.yaml"
        path.parent.mkdir(parents=True)
        shutil.copyfile(ROOT / f"k8s/apps/{environment}/champion.yaml", path)
    (folder / "pipelines/schedules").mkdir(parents=True)
    (folder / SCHEDULE).write_text(
        f"# weekly\nname: weekly\npipeline_version: {PINS['1']}  # reviewed\ncron: '0 3 * * 1'\n"
    )
    git(folder, "init", "--quiet", "--initial-branch", "main")
    for key, value in {"user.name": "Tests", "user.email": "tests@localhost", "commit.gpgsign": "false"}.items():
        git(folder, "config", key, value)
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "Cluster state")
    return folder


def pin(repository: Path, version: str) -> None:
    """A person moves the schedule to another pipeline version."""
    path = repository / SCHEDULE
    path.write_text(path.read_text().replace(PINS["1"], version).replace(PINS["2"], version))
    git(repository, "commit", "--quiet", "-am", f"Retrain with {version}")


def ledger(folder: Path, on_step=lambda step: None, environments=("staging",), gitops: GitOps | None = None) -> Ledger:
    repository = folder / "repository"
    if gitops is None and repository.is_dir():
        gitops = open_gitops(repository, environments, None, None)
    return Ledger(FileAliases(folder / "aliases.json"), LocalPlace(folder / "promotion"), gitops, on_step)


def candidate(version: str) -> Candidate:
    return Candidate(MODEL, version, f"s3://bucket/store/policy/{version * 64}")


def expecting(champion: str | None):
    """What an evaluation against `champion` allows."""

    def examine(before: State) -> dict:
        if before.champion != champion:
            raise GateRefused(f"compared with {champion}, the champion is now {before.champion}")
        return {"verdict": "pass", "report_sha256": "5" * 64}

    return examine


def promoted(to: Ledger, version: str, champion: str | None, wait_seconds: float = 30.0) -> Outcome:
    return promote(to, candidate(version), expecting(champion), "tests", "The gate passed.", wait_seconds)


def rolled_back(of: Ledger, to: str | None = None) -> Outcome:
    return rollback(of, MODEL, to, candidate, "tests", "It was worse.", 30.0)


def everything(of: Ledger) -> tuple[State, dict[str, str]]:
    """The state as anyone sees it, and the bytes of each file at the branch's tip and in the working tree."""
    state = current_state(of, MODEL)
    files = {}
    if of.gitops:
        for path in git(of.gitops.repository, "ls-files").splitlines():
            files[path] = (of.gitops.repository / path).read_text()
            assert files[path] == git(of.gitops.repository, "show", f"HEAD:{path}") + "\n", path
    return state, files


def num_decisions(of: Ledger) -> int:
    assert pending(of.place) is None
    return len(read_decisions(of.place))


if __name__ == "__main__":
    # Promote (or roll back) and die by kill -9 after a step, as a pod or a laptop does.
    folder, kind, dies_after = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    dying = ledger(folder, lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == dies_after else None)
    promoted(dying, "2", "1") if kind == "promote" else rolled_back(dying)
