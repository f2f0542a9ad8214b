"""Which commit a model is said to come from: only one that holds the code which ran, and clean only if it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from understudy.platform import registry

UNKNOWN = {"git_commit": "unknown", "git_dirty": "unknown"}
COMMIT = "c" * 40


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit_all(folder: Path) -> str:
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all")
    return git(folder, "rev-parse", "HEAD")


def install(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put files of the code below a folder, and let the registry's module be one of them."""
    for name in (
        "understudy/platform/registry.py",
        "understudy/config/params.py",
        "components/align.py",
        "pipelines/arguments.py",
        "examples/ansible/judge.py",
        "params.yaml",
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("one\n")
    monkeypatch.setattr(registry, "__file__", str(top / "understudy/platform/registry.py"))


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNDERSTUDY_GIT_COMMIT", "UNDERSTUDY_IMAGE_DIGEST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(tmp_path / "clone", monkeypatch)
    return tmp_path / "clone"


def test_a_clean_clone_is_its_commit(clone: Path) -> None:
    commit = commit_all(clone)
    assert registry.code_origin() == {"git_commit": commit, "git_dirty": "false"}


@pytest.mark.parametrize(
    "name",
    [
        "understudy/platform/registry.py",
        "understudy/config/params.py",
        "understudy/new.py",
        "components/align.py",
        "pipelines/arguments.py",
        "pipelines/new.py",
        "examples/ansible/judge.py",
    ],
)
def test_any_change_to_what_runs_is_told(clone: Path, name: str) -> None:
    commit = commit_all(clone)
    (clone / name).write_text("two\n")
    assert registry.code_origin() == {"git_commit": commit, "git_dirty": "true"}
    git(clone, "add", name)
    assert registry.code_origin()["git_dirty"] == "true"


def test_params_and_other_files_are_not_code(clone: Path) -> None:
    commit = commit_all(clone)
    for name in ("params.yaml", "notes.txt"):
        (clone / name).write_text("two\n")
    assert registry.code_origin() == {"git_commit": commit, "git_dirty": "false"}


def test_a_clone_within_another_repository_is_asked_itself(clone: Path) -> None:
    git(clone.parent, "init", "--quiet")
    commit = commit_all(clone)
    assert registry.code_origin() == {"git_commit": commit, "git_dirty": "false"}


def test_a_repository_around_an_installation_says_nothing_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitignore").write_text(".venv/\n")
    commit_all(tmp_path)
    install(tmp_path / ".venv/lib/python3.11/site-packages", monkeypatch)
    assert registry.code_origin() == UNKNOWN


def test_no_repository_and_no_commit_yet_are_unknown(clone: Path) -> None:
    assert registry.code_origin() == UNKNOWN
    git(clone, "init", "--quiet")
    git(clone, "add", ".")
    assert registry.code_origin() == UNKNOWN


@pytest.mark.parametrize(
    ("told", "origin"),
    [
        (COMMIT, {"git_commit": COMMIT, "git_dirty": "false"}),
        (f"{COMMIT}-dirty", {"git_commit": COMMIT, "git_dirty": "true"}),
        ("unknown", UNKNOWN),
        ("unknown-dirty", UNKNOWN),
    ],
)
def test_an_image_tells_what_its_build_told_it(
    monkeypatch: pytest.MonkeyPatch, told: str, origin: dict[str, str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_GIT_COMMIT", told)
    monkeypatch.setenv("UNDERSTUDY_IMAGE_DIGEST", "sha256:abc")
    assert registry.code_origin() == origin | {"image_digest": "sha256:abc"}
