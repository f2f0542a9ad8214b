"""The champion as the registry names it now, asked without importing MLflow, which costs seconds.

Unlike the receipts of registrations, a doubt here is an error: a run that takes an unreachable registry for an empty
one would compare its challenger with nobody.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from understudy.errors import IntegrityError, ServiceUnreachable
from understudy.platform.storage import without_secrets
from understudy.records import PolicyRef

ALIAS = "champion"
_ANSWER_SECONDS = 30.0
_TAGS = ("weights_uri", "weights_sha256", "stage", "dataset_md5", "policy_config_sha256", "code_sha256", "base")


def current_champion(uri: str, name: str, workdir: Path) -> PolicyRef | None:
    """Return the policy of `name@champion` at an MLflow tracking URI, None where there is no such alias.

    Raises:
        ServiceUnreachable: the registry does not answer clearly.
        IntegrityError: the version does not say which weights it has.
    """
    if uri.startswith("sqlite:///"):
        found = _from_sqlite(Path(uri.removeprefix("sqlite:///")), name)
    elif uri.startswith(("http://", "https://")):
        found = _from_server(uri, name)
    else:
        found = _from_client(uri, name, workdir)
    return None if found is None else _policy(name, *found)


def _policy(name: str, version: str, tags: dict[str, str]) -> PolicyRef:
    missing = [tag for tag in _TAGS if not tags.get(tag)]
    if missing:
        raise IntegrityError(
            f"{name}/{version} is @{ALIAS} and has no {', '.join(missing)}: it was not registered by this pipeline, so "
            f"a challenger cannot be compared with it. Give the alias to a version that was, or take it away."
        )
    parent = tags.get("parent_sha256", "none")
    return PolicyRef(
        uri=tags["weights_uri"],
        sha256=tags["weights_sha256"],
        stage=tags["stage"],
        dataset_md5=tags["dataset_md5"],
        parent_sha256=None if parent == "none" else parent,
        config_sha256=tags["policy_config_sha256"],
        code_sha256=tags["code_sha256"],
        base=tags["base"],
        # Not kept by the registry; nothing of an evaluation depends on them.
        train_seconds=0.0,
        compute_token_passes=0,
    )


def _from_sqlite(path: Path, name: str) -> tuple[str, dict[str, str]] | None:
    if not path.exists():
        return None
    alias = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
    tags = "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?"
    try:
        # Read-only, so that asking never creates a store.
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_ANSWER_SECONDS)) as store:
            if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'registered_model_aliases'").fetchone():
                return None
            row = store.execute(alias, (name, ALIAS)).fetchone()
            return None if row is None else (str(row[0]), dict(store.execute(tags, (name, row[0])).fetchall()))
    except sqlite3.Error as error:
        raise ServiceUnreachable(
            f"The registry {str(path)!r} cannot be read: {error}. Check that file, then run the same command again."
        ) from error


def _from_server(uri: str, name: str) -> tuple[str, dict[str, str]] | None:
    import requests

    headers, login = {}, None
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    elif user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        login = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    address = f"{uri.rstrip('/')}/api/2.0/mlflow/registered-models/alias"
    query = {"name": name, "alias": ALIAS}
    try:
        answer = requests.get(address, params=query, headers=headers, auth=login, timeout=_ANSWER_SECONDS)
        content: dict[str, Any] = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise _unclear(uri, name, type(error).__name__) from error
    if answer.status_code != 200:
        code = content.get("error_code")
        # MLflow answers a missing alias of a known model with INVALID_PARAMETER_VALUE.
        if code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and ALIAS in str(content)):
            return None
        raise _unclear(uri, name, f"status {answer.status_code} {code or ''}".strip())
    version = content["model_version"]
    return str(version["version"]), {tag["key"]: tag["value"] for tag in version.get("tags", [])}


def _from_client(uri: str, name: str, workdir: Path) -> tuple[str, dict[str, str]] | None:
    from understudy.platform.registry import Registry

    registry = Registry(uri, workdir)
    found = [version for version in registry.versions() if version.name == name and ALIAS in version.aliases]
    return (found[0].version, found[0].tags) if found else None


def _unclear(uri: str, name: str, why: str) -> ServiceUnreachable:
    return ServiceUnreachable(
        f"MLflow at {without_secrets(uri)} does not say whether {name} has a @{ALIAS}: {why}. Check tracking.uri and "
        "the server, then run the same command again."
    )
