"""The deployment's truth: commits on a branch of the GitOps repository, made without touching what is checked out.

Plain Git and nothing of a provider's: a commit is built beside the working tree and becomes the branch's tip in one
conditional step, then it is pushed, if a remote is named. It carries its decision's id, so that nobody makes it twice.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from understudy.config import PromotionConfig
from understudy.errors import ConfigError, ServiceUnreachable
from understudy.platform.git import git
from understudy.platform.promotion.manifests import read_champion, read_pin, write_champion, write_pin

TRAILER = "Decision-Id"
_ATTEMPTS = 5
_SSH = re.compile(r"[\w.-]+@[\w.-]+:.")
_PASSWORD = re.compile(r"://[^@/\s]+@")
_PATIENT = ("-c", "core.filesRefLockTimeout=2000")
_AGAIN = "Run the same command again: it finishes what was begun."
_CHAMPION = "k8s/apps/{environment}/champion.yaml"
_SCHEDULES = "pipelines/schedules"


@dataclass(frozen=True)
class GitOps:
    """Where a champion is deployed from.

    Attributes:
        repository: a folder in the repository.
        environments: the folders of k8s/apps whose champion.yaml is written.
        branch: where commits go; made if it is not there.
        remote: where the branch is pushed to, None to keep it here.
    """

    repository: Path
    environments: tuple[str, ...]
    branch: str
    remote: str | None = None

    def tip(self) -> str:
        """Return the commit to build on: the remote's branch, else this one, else what is checked out."""
        if self.remote:
            self._run("fetch", "--quiet", self.remote)
            there = self._try("rev-parse", "--verify", "--quiet", f"refs/remotes/{self.remote}/{self.branch}")
            if there:
                return there
        return self._try("rev-parse", "--verify", "--quiet", self._ref) or self._run("rev-parse", "HEAD")

    def read(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Return what each environment serves, and what each schedule pins, at the tip.

        Raises:
            ConfigError: no repository, no such environment, or files with changes that are not committed.
        """
        tip = self.tip()
        serving = {}
        for environment in self.environments:
            path = _CHAMPION.format(environment=environment)
            serving[environment] = read_champion(self._show(tip, path), path)
        pins = {path: read_pin(self._show(tip, path)) for path in self._schedules(tip)}
        self._refuse_local_changes([*map(_path_of, self.environments), *pins])
        return serving, {path: pin for path, pin in pins.items() if pin is not None}

    def commit(
        self, serving: Mapping[str, dict[str, str]], pins: Mapping[str, str], subject: str, body: str, decision: str
    ) -> str:
        """Bring the branch to this content in one commit, once per decision; return the commit.

        Raises:
            ServiceUnreachable: the remote does not answer or keeps moving.
        """
        for _ in range(_ATTEMPTS):
            tip = self.tip()
            if made := self._find(tip, decision):
                self._follow(made)
                return made
            commit = self._build(tip, serving, pins, f"{subject}\n\n{body}", decision)
            if self._publish(commit):
                return commit
        raise ServiceUnreachable(
            f"Branch {self.branch} of {self.remote or self.repository} moved {_ATTEMPTS} times while the champion was "
            f"written to it. {_AGAIN}"
        )

    def commit_of(self, decision: str) -> str | None:
        """Return the commit that carries a decision."""
        return self._find(self.tip(), decision)

    def _publish(self, commit: str) -> bool:
        """Make the commit the branch's tip, here and at the remote; False when the branch moved meanwhile."""
        if not self.remote:
            return self._follow(commit)
        pushed = self._call("push", "--quiet", self.remote, f"{commit}:{self._ref}")
        if pushed.returncode:
            there = self._run("ls-remote", "--quiet", self.remote, self._ref).partition("\t")[0]
            if there and there not in (commit, self._run("rev-parse", f"{commit}^")):
                return False
            if there != commit:  # else it arrived and only the answer was lost
                raise ServiceUnreachable(
                    f"{self.remote} does not take {self.branch}: {_words(pushed)}. Allow it and run the same command "
                    "again, or name a branch that may be pushed with --branch and open a change from it."
                )
        self._follow(commit)  # else somebody's own commits are on the local branch; theirs to merge
        return True

    def _follow(self, commit: str) -> bool:
        """Move the local branch forward to the commit; False where it holds others."""
        here = self._try("rev-parse", "--verify", "--quiet", self._ref)
        if here and self._try("merge-base", "--is-ancestor", commit, here) is None:
            if self._try("merge-base", "--is-ancestor", here, commit) is None:
                return False
            if not self._move(commit, here):
                return False
        elif not here and not self._move(commit, None):
            return False
        self._check_out(commit)
        return True

    def _move(self, commit: str, here: str | None) -> bool:
        """Set the local branch if it still is what it was; raise what Git says where something else hinders it."""
        moved = self._call(*_PATIENT, "update-ref", "-m", "champion", self._ref, commit, here or "0" * 40)
        if moved.returncode and self._try("rev-parse", "--verify", "--quiet", self._ref) == here:
            raise ServiceUnreachable(f"`git update-ref` failed in {str(self.repository)!r}: {_words(moved)}. {_AGAIN}")
        return moved.returncode == 0

    def _build(
        self, tip: str, serving: Mapping[str, dict[str, str]], pins: Mapping[str, str], message: str, decision: str
    ) -> str:
        files = {}
        for environment, served in serving.items():
            path = _path_of(environment)
            files[path] = write_champion(self._show(tip, path), served, path)
        for path in self._schedules(tip):
            if path in pins:
                files[path] = write_pin(self._show(tip, path), pins[path])
        with tempfile.TemporaryDirectory(prefix="understudy-git-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            self._run("read-tree", tip, more=index)
            for path, text in files.items():
                blob = self._run("hash-object", "-w", "--stdin", text=text)
                self._run("update-index", "--cacheinfo", f"100644,{blob},{path}", more=index)
            tree = self._run("write-tree", more=index)
        return self._run(
            "commit-tree", tree, "-p", tip, text=f"{message}\n\n{TRAILER}: {decision}\n", more=self._author
        )

    def _find(self, tip: str, decision: str) -> str | None:
        return self._run("log", "-1", "--format=%H", "--fixed-strings", f"--grep={TRAILER}: {decision}", tip) or None

    def _check_out(self, commit: str) -> None:
        """Let the checked-out files follow their branch, where nobody has changed them."""
        if self._try("symbolic-ref", "--quiet", "HEAD") != self._ref:
            return
        changed = _names(self._run("diff-tree", "-z", "-r", "--no-commit-id", "--name-only", commit))
        root = Path(self._run("rev-parse", "--show-toplevel"))
        for path in changed:
            here = (root / path).read_bytes().decode(errors="surrogateescape") if (root / path).is_file() else None
            if here in (self._show(f"{commit}^", path), self._show(commit, path)):
                self._run("checkout", "--quiet", "HEAD", "--", f":/{path}")

    def _refuse_local_changes(self, paths: list[str]) -> None:
        if self._try("symbolic-ref", "--quiet", "HEAD") != self._ref:
            return
        changed = self._run("status", "--porcelain", "--", *(f":/{path}" for path in paths))
        if changed:
            raise ConfigError(
                f"{self.repository} has changes that are not committed: {' '.join(changed.split())}. Commit or discard "
                "them, or promote on another branch."
            )

    @property
    def _ref(self) -> str:
        return f"refs/heads/{self.branch}"

    @property
    def _author(self) -> dict[str, str]:
        known = self._try("var", "GIT_AUTHOR_IDENT") if self._try("config", "user.email") else None
        name, email = "understudy", "understudy@localhost"
        mine = {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": email}
        return {} if known else mine | {"GIT_COMMITTER_NAME": name, "GIT_COMMITTER_EMAIL": email}

    def _schedules(self, tip: str) -> list[str]:
        listed = _names(self._run("ls-tree", "-z", "--full-tree", "--name-only", tip, f"{_SCHEDULES}/"))
        return [path for path in listed if path.endswith((".yaml", ".yml"))]

    def _show(self, commit: str, path: str) -> str:
        text = self._call("show", f"{commit}:{path}")
        if text.returncode:
            raise ConfigError(f"{self.repository} has no {path} at {commit[:12]}. Check --gitops and --environment.")
        return text.stdout

    def _run(self, *arguments: str, text: str | None = None, more: Mapping[str, str] | None = None) -> str:
        done = self._call(*arguments, text=text, more=more)
        if done.returncode == 0:
            return done.stdout.strip()
        kind = ServiceUnreachable if arguments[0] in ("clone", "fetch", "push", "ls-remote") else ConfigError
        raise kind(
            f"`git {arguments[0]}` failed in {str(self.repository)!r}: {_words(done)}. Check the repository and remote."
        )

    def _try(self, *arguments: str) -> str | None:
        done = self._call(*arguments)
        return done.stdout.strip() if done.returncode == 0 else None

    def _call(
        self, *arguments: str, text: str | None = None, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return git(self.repository, *arguments, text=text, more=more)


def open_gitops(repository: Path, environments: tuple[str, ...], branch: str | None, remote: str | None) -> GitOps:
    """Return the GitOps repository; without `branch` the one that is checked out.

    Raises:
        ConfigError: no repository there, or no branch is checked out and none is named.
    """
    if not repository.is_dir():
        raise ConfigError(f"There is no GitOps repository at {str(repository)!r}. Name its folder with --gitops.")
    found = GitOps(repository, environments, branch or "", remote)
    found._run("rev-parse", "--show-toplevel")
    if not branch:
        branch = found._try("symbolic-ref", "--quiet", "--short", "HEAD")
    if not branch:
        raise ConfigError(f"{repository} has no branch checked out. Name one with --branch.")
    if found._try("check-ref-format", "--branch", branch) is None:
        raise ConfigError(f"{branch!r} cannot be the name of a branch. Name another with --branch.")
    if remote and found._try("remote", "get-url", remote) is None:
        raise ConfigError(f"{repository} has no remote {remote!r}. Name one of its remotes with --push.")
    return GitOps(repository, environments, branch, remote)


def open_or_clone(promotion: PromotionConfig, folder: Path) -> GitOps:
    """Return the repository that the params name: a folder as it is, an address cloned to `folder`.

    Raises:
        ConfigError, ServiceUnreachable: as `open_gitops` and `clone_gitops`.
    """
    where = str(promotion.gitops)
    if Path(where).is_dir():
        return open_gitops(Path(where), promotion.environments, promotion.branch, promotion.remote)
    return clone_gitops(where, folder, promotion.environments, promotion.branch)


def clone_gitops(address: str, folder: Path, environments: tuple[str, ...], branch: str | None) -> GitOps:
    """Clone the repository that a pod deploys from; what is committed there is pushed back.

    Git's own configuration gives the credentials: GIT_CONFIG_COUNT, GIT_CONFIG_KEY_0… of a Secret, or SSH.

    Raises:
        ConfigError: it is no address that Git knows, or empty.
        ServiceUnreachable: the remote does not answer, or refuses.
    """
    if "://" not in address and not _SSH.match(address):
        raise ConfigError(
            f"{_PASSWORD.sub('://', address)!r} is no folder here and no address that `git clone` takes. "
            "Name a repository with promotion.gitops (--gitops)."
        )
    folder.mkdir(parents=True)
    GitOps(folder, environments, "")._run("clone", "--quiet", "--", address, ".")
    return open_gitops(folder, environments, branch, "origin")


def _names(listed: str) -> list[str]:
    return [name for name in listed.split("\0") if name]


def _words(done: subprocess.CompletedProcess[str]) -> str:
    return _PASSWORD.sub("://", " ".join(done.stderr.split())).rstrip(".")


def _path_of(environment: str) -> str:
    return _CHAMPION.format(environment=environment)
