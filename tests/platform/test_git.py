"""Git is asked about the folder that is meant, without questions back, and its absence and slowness are said."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from understudy.errors import ConfigError, ServiceUnreachable
from understudy.platform import datasets, registry
from understudy.platform.git import git
from understudy.records import DatasetRef


@pytest.fixture
def hooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository; the environment is that of a hook of another one."""
    for name in ("mine", "hook"):
        subprocess.run(["git", "init", "-q", str(tmp_path / name)], check=True)
    for key, value in (("user.name", "T"), ("user.email", "t@example.org")):
        subprocess.run(["git", "-C", str(tmp_path / "mine"), "config", key, value], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "hook" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "hook" / ".git" / "index"))
    return tmp_path / "mine"


def test_a_pointer_is_committed_to_the_repository_of_its_folder_within_a_hook(hooked: Path, tmp_path: Path) -> None:
    ref = DatasetRef("u", "1f.dir", 1, {}, 1, 1, "s", "d", None)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "demonstrations.dvc").write_text("md5: 1f.dir\n")
    _, revision = datasets.commit(ref, tmp_path / "w", hooked)
    assert git(hooked, "rev-parse", "HEAD").stdout.strip() == revision
    assert not list((tmp_path / "hook" / ".git" / "refs" / "heads").iterdir())


def test_the_origin_of_the_code_is_not_the_hook_s(hooked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    within = registry.code_origin()
    for name in ("GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)
    assert within == registry.code_origin()


def test_no_question_is_asked_and_more_variables_win(hooked: Path) -> None:
    alias = "alias.told=!echo $GIT_TERMINAL_PROMPT $MORE ${GIT_NAMESPACE-none}"
    assert git(hooked, "-c", alias, "told", more={"MORE": "m"}).stdout == "0 m none\n"
    assert git(hooked, "hash-object", "--stdin", text="x\r\n").stdout.strip() == (
        subprocess.run(["git", "hash-object", "--stdin"], input=b"x\r\n", capture_output=True).stdout.decode().strip()
    )


def test_without_git_and_when_it_hangs(hooked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ServiceUnreachable, match=r"`git -c` in '.*/mine' did not end in 0\.2 s"):
        git(hooked, "-c", "alias.wait=!sleep 1", "wait", timeout_seconds=0.2)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="Git cannot be started: No such file or directory. Install git."):
        git(hooked, "status")
    assert registry.code_origin()["git_commit"] == "unknown"
