"""Git, asked as a command: it never waits for an answer on the terminal and never takes the repository of a hook."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from understudy.errors import ConfigError, ServiceUnreachable

# Inside a Git hook these name its repository, not the one that is asked for.
_OF_A_HOOK = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
    *("GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_QUARANTINE_PATH"),
)


def git(
    folder: Path,
    *arguments: str,
    text: str | None = None,
    more: Mapping[str, str] | None = None,
    timeout_seconds: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Run Git in `folder`, whatever its exit status, with `text` as input and `more` variables.

    Raises:
        ConfigError: Git is not installed.
        ServiceUnreachable: it did not end in time.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    environment = {**inherited, "GIT_TERMINAL_PROMPT": "0", **(more or {})}
    command = ["git", "-C", str(folder), *arguments]
    given = None if text is None else text.encode(errors="surrogateescape")
    try:
        done = subprocess.run(command, input=given, env=environment, capture_output=True, timeout=timeout_seconds)
    except OSError as error:
        raise ConfigError(f"Git cannot be started: {error.strerror}. Install git.") from error
    except subprocess.TimeoutExpired as error:
        raise ServiceUnreachable(
            f"`git {arguments[0]}` in {str(folder)!r} did not end in {timeout_seconds:g} s."
        ) from error
    # Not subprocess's text mode: it would take the locale's encoding and change line ends.
    out, said = (data.decode(errors="surrogateescape") for data in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, out, said)
