"""Receipts of registrations: by them an unchanged run knows that the registry still holds what register put there.

A cache that keys on inputs cannot see that a registry was emptied, or that the tracking URI names another one by
now. So register leaves a receipt file in the working directory, its artifact is that file, and each local run first
removes the receipts that the registry does not confirm: kfp.local takes a missing file for a miss, and register runs.
The registry is asked without importing MLflow, which costs seconds; no clear answer counts as no.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from understudy.data.files import write_atomically
from understudy.platform import where
from understudy.platform.mlflow_read import ask, sqlite_store
from understudy.platform.storage import without_secrets
from understudy.records import RegistryEntry

FOLDER = "registrations"
_WEIGHTS = "weights_sha256"
_ANSWER_SECONDS = 10.0


def receipt(workdir: Path, entry: RegistryEntry) -> Path:
    """Return where the receipt of an entry lies."""
    return workdir / FOLDER / f"{entry.name}-{entry.version}.json"


def write_receipt(workdir: Path, tracking_uri: str, entry: RegistryEntry) -> Path:
    """Write the receipt of a registration, whole or not at all."""
    path = receipt(workdir, entry)
    content = {"registry": without_secrets(tracking_uri), "entry": entry.to_json()}
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True).encode())
    return path


def forget_unconfirmed(workdir: Path, tracking_uri: str) -> list[Path]:
    """Remove the receipts of versions that the registry does not hold with their weights and alias; return their paths.

    Weights must be the same, and the alias must not be another version's.
    """
    gone = [path for path in sorted((workdir / FOLDER).glob("*.json")) if not _confirmed(path, tracking_uri)]
    for path in gone:
        path.unlink()
    return gone


def _confirmed(path: Path, tracking_uri: str) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entry = RegistryEntry.from_json(content["entry"])
        if content["registry"] != without_secrets(tracking_uri):
            return False
        weights, holder = _found(tracking_uri, entry)
        return weights == entry.tags[_WEIGHTS] and holder in (None, entry.version)
    except (OSError, ValueError, KeyError, LookupError, sqlite3.Error):
        return False


def _found(uri: str, entry: RegistryEntry) -> tuple[str | None, str | None]:
    """Return what the registry says: the digest of the version's weights, and which version has its alias."""
    if path := where.sqlite_file(uri):
        return _from_sqlite(path, entry)
    if uri.startswith(("http://", "https://")):
        return _from_server(uri, entry)
    return None, None


def _from_sqlite(path: Path, entry: RegistryEntry) -> tuple[str | None, str | None]:
    query = (
        "SELECT tag.value, alias.version FROM model_versions AS version JOIN model_version_tags AS tag "
        "ON tag.name = version.name AND tag.version = version.version "
        "LEFT JOIN registered_model_aliases AS alias ON alias.name = version.name AND alias.alias = ? "
        "WHERE version.name = ? AND version.version = ? AND tag.key = ? "
        "AND version.current_stage != 'Deleted_Internal'"
    )
    with sqlite_store(path, _ANSWER_SECONDS) as store:
        row = store.execute(query, (entry.alias, entry.name, int(entry.version), _WEIGHTS)).fetchone()
    if row is None:
        return None, None
    weights, holder = row
    return str(weights), None if holder is None else str(holder)


def _from_server(uri: str, entry: RegistryEntry) -> tuple[str | None, str | None]:
    query = {"name": entry.name, "version": entry.version}
    status, content = ask(uri, "model-versions/get", query, _ANSWER_SECONDS)
    model_status, model = ask(uri, "registered-models/get", {"name": entry.name}, _ANSWER_SECONDS)
    if status != 200 or model_status != 200:
        return None, None
    tags = content["model_version"].get("tags", [])
    aliases = model["registered_model"].get("aliases", [])
    weights = next((str(tag["value"]) for tag in tags if tag["key"] == _WEIGHTS), None)
    holder = next((str(item["version"]) for item in aliases if item["alias"] == entry.alias), None)
    return weights, holder
