"""MLflow read without importing it, which costs seconds: a server over REST, a SQLite store by its tables."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any


def ask(
    uri: str, path: str, query: Mapping[str, Any], timeout_seconds: float, post: bool = False
) -> tuple[int, dict[str, Any]]:
    """Return status and content of a server's answer, asked with the credentials that MLflow's own client takes.

    Raises:
        OSError: the server does not answer.
        ValueError: the answer is not a JSON object.
    """
    import requests

    user, password, token = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN"))
    login = (user, password) if user and password else None
    headers = {"Authorization": f"Bearer {token}"} if token and not login else {}
    asked: dict[str, Any] = {"json" if post else "params": query}
    answer = requests.request(
        "POST" if post else "GET",
        f"{uri.rstrip('/')}/api/2.0/mlflow/{path}",
        headers=headers,
        auth=login,
        timeout=timeout_seconds,
        **asked,
    )
    content = answer.json()
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__} instead of an object")
    return answer.status_code, content


@contextmanager
def sqlite_store(path: Path, timeout_seconds: float) -> Iterator[sqlite3.Connection]:
    """Open a SQLite store to read, so that asking never creates one.

    Raises:
        sqlite3.Error: it is absent, locked for longer, or no database; by the caller's statements, too.
    """
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=timeout_seconds)) as store:
        yield store
