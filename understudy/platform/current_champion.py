"""The champion as the registry names it now, asked without importing MLflow, which costs seconds.

Unlike the receipts of registrations, a doubt here is an error: a run that takes an unreachable registry for an empty
one would compare its challenger with nobody.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from understudy.errors import IntegrityError, ServiceUnreachable
from understudy.platform import where
from understudy.platform.mlflow_read import ask, sqlite_store
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
    if path := where.sqlite_file(uri):
        found = _from_sqlite(path, name)
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
        with sqlite_store(path, _ANSWER_SECONDS) as store:
            if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'registered_model_aliases'").fetchone():
                return None
            row = store.execute(alias, (name, ALIAS)).fetchone()
            return None if row is None else (str(row[0]), dict(store.execute(tags, (name, row[0])).fetchall()))
    except sqlite3.Error as error:
        raise ServiceUnreachable(
            f"The registry {str(path)!r} cannot be read: {error}. Check that file, then run the same command again."
        ) from error


def _from_server(uri: str, name: str) -> tuple[str, dict[str, str]] | None:
    try:
        status, content = ask(uri, "registered-models/alias", {"name": name, "alias": ALIAS}, _ANSWER_SECONDS)
    except (OSError, ValueError) as error:
        raise _unclear(uri, name, type(error).__name__) from error
    if status != 200:
        code = content.get("error_code")
        # MLflow answers a missing alias of a known model with INVALID_PARAMETER_VALUE.
        if code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and ALIAS in str(content)):
            return None
        raise _unclear(uri, name, f"status {status} {code or ''}".strip())
    try:
        version = content["model_version"]
        return str(version["version"]), {tag["key"]: tag["value"] for tag in version.get("tags", [])}
    except (KeyError, TypeError, AttributeError) as error:  # the page of a proxy, or of another service
        raise _unclear(uri, name, f"its answer has no model version, but {', '.join(content) or 'nothing'}") from error


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
