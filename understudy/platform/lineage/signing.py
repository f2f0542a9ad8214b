"""DSSE envelopes signed with ed25519: https://github.com/secure-systems-lab/dsse (v1.0), by the library `cryptography`.

A private key is a PEM file (PKCS 8) named by UNDERSTUDY_SIGNING_KEY; the public keys that are trusted are PEM files
named by UNDERSTUDY_TRUSTED_KEYS, separated by colons. In a pod, whose secrets come as variables, they hold the PEM text
itself. `openssl genpkey -algorithm ed25519` makes a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_BEGIN = "-----BEGIN"
SIGNING_KEY, TRUSTED_KEYS = "UNDERSTUDY_SIGNING_KEY", "UNDERSTUDY_TRUSTED_KEYS"


def signing_key() -> Ed25519PrivateKey | None:
    """Return the configured private key, None where none is.

    Raises:
        ConfigError: the file is not an unencrypted ed25519 private key.
    """
    given = os.environ.get(SIGNING_KEY)
    if not given:
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_pem(given), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        kind = type(error).__name__
        raise ConfigError(f"{SIGNING_KEY}: {_shown(given)} holds no usable private key ({kind}).") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{SIGNING_KEY}: {_shown(given)} holds another kind of key; expected ed25519.")
    return key


def trusted_keys() -> list[Ed25519PublicKey]:
    """Return the configured public keys.

    Raises:
        ConfigError: a file is not an ed25519 public key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = []
    for given in _several(os.environ.get(TRUSTED_KEYS, "")):
        try:
            key = load_pem_public_key(_pem(given))
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            kind = type(error).__name__
            raise ConfigError(f"{TRUSTED_KEYS}: {_shown(given)} holds no public key ({kind}).") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(f"{TRUSTED_KEYS}: {_shown(given)} holds another kind of key; expected ed25519.")
        keys.append(key)
    return keys


def key_id(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of the public key in its DER form."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def sign(payload: bytes, key: Ed25519PrivateKey) -> dict[str, Any]:
    """Return the envelope of a payload; ed25519 is deterministic, so equal payloads give equal envelopes."""
    signature = {"keyid": key_id(key.public_key()), "sig": _text(key.sign(_authenticated(payload)))}
    return {"payloadType": PAYLOAD_TYPE, "payload": _text(payload), "signatures": [signature]}


def verify(envelope: bytes, keys: Sequence[Ed25519PublicKey]) -> tuple[bytes, str]:
    """Return the payload of an envelope and the id of the trusted key that signed it.

    Raises:
        IntegrityError: it is not an envelope, or no trusted key signed it.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        content = json.loads(envelope)
        payload = base64.b64decode(content["payload"], validate=True)
        signatures = [base64.b64decode(item["sig"], validate=True) for item in content["signatures"]]
        kind = content["payloadType"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise IntegrityError(f"The provenance is not a DSSE envelope: {error!r}. Sign the version again.") from error
    if kind != PAYLOAD_TYPE:
        raise IntegrityError(f"The envelope is of type {kind!r}, expected {PAYLOAD_TYPE!r}. Sign the version again.")
    for key in keys:
        for signature in signatures:
            try:
                key.verify(signature, _authenticated(payload))
                return payload, key_id(key)
            except InvalidSignature:
                continue
    raise IntegrityError(
        f"None of the {len(keys)} trusted keys ({', '.join(key_id(key)[:12] for key in keys) or 'none'}) signed the "
        f"provenance. Name the signer's public key in {TRUSTED_KEYS}, or do not use this version."
    )


def _several(value: str) -> list[str]:
    if _BEGIN in value:
        return [f"{_BEGIN}{part}" for part in value.split(_BEGIN)[1:]]
    return [path for path in value.split(os.pathsep) if path]


def _pem(given: str) -> bytes:
    return given.strip().encode() if _BEGIN in given else Path(given).read_bytes()


def _shown(given: str) -> str:
    """Never the text of a key."""
    return "the variable" if _BEGIN in given or "\n" in given else given


def _authenticated(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
