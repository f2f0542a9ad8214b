"""Sign a registered version's provenance, when a key is configured."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from understudy.errors import ConfigError, ServiceUnreachable
from understudy.platform.lineage import provenance, signing
from understudy.platform.lineage.record import read_lineage, store_file
from understudy.platform.storage import Store, without_secrets
from understudy.records import RegistryEntry

if TYPE_CHECKING:
    from understudy.platform.registry import Registry


def sign_version(registry: Registry, store: Store, entry: RegistryEntry) -> RegistryEntry:
    """Store the signed provenance and name it in the version's tags; without a key, or with both there, do nothing.

    Raises:
        ConfigError: the key is unusable.
        ServiceUnreachable: the registry or the store does not answer.
    """
    key = signing.signing_key()
    if key is None or "registered_sha256" not in entry.tags or "lineage_sha256" not in entry.tags:
        return entry
    tags = entry.tags
    lineage = read_lineage(store.fetch(tags["lineage_uri"], tags["lineage_sha256"]))
    payload = provenance.payload(lineage, tags["lineage_sha256"], tags["registered_sha256"])
    envelope = json.dumps(signing.sign(payload, key), indent=1, sort_keys=True) + "\n"
    stored = store_file(store, provenance.KIND, provenance.FILE, envelope.encode())
    added = {"provenance_uri": stored.uri, "provenance_sha256": stored.sha256}
    _set_tags(registry, entry, added)
    return dataclasses.replace(entry, tags=tags | added)


def require_key() -> None:
    """Raise ConfigError where no signing key is configured."""
    if signing.signing_key() is None:
        raise ConfigError(
            "There is no key to sign with. Make one with `openssl genpkey -algorithm ed25519 -out key.pem` and name "
            f"it in {signing.SIGNING_KEY}."
        )


def _set_tags(registry: Registry, entry: RegistryEntry, tags: dict[str, str]) -> None:
    from mlflow import MlflowException
    from requests import RequestException

    try:
        for name, value in tags.items():
            if entry.tags.get(name) != value:
                registry.client.set_model_version_tag(entry.name, entry.version, name, value)
    except (RequestException, MlflowException) as error:
        raise ServiceUnreachable(
            f"MLflow at {without_secrets(registry.uri)} did not take the tags of the signature: "
            f"{type(error).__name__}. Run the same command again."
        ) from error
