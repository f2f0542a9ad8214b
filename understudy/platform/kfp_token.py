"""The bearer token that KFP is asked with: a person's, or the projected one of a service account. Never printed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import ConfigError

TOKEN_VARIABLE = "KFP_TOKEN"
PATH_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
PATH = "/var/run/secrets/kubeflow/pipelines/token"
_TOKEN = re.compile(r"[\x21-\x7e]+")


def bearer_token(token_file: Path | None) -> str | None:
    """Return the token from a file, else from KFP_TOKEN; None leaves it to the service account's.

    Raises:
        ConfigError: the file cannot be read or is empty, or no header can carry the token; it is never in the message.
    """
    if token_file is not None:
        return token_in(token_file)
    text = os.environ.get(TOKEN_VARIABLE, "").strip()
    return _checked(text, TOKEN_VARIABLE) if text else None


def token_in(path: Path) -> str:
    """Return the token that a file holds.

    Raises:
        ConfigError: as `bearer_token` does.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Token file {str(path)!r} cannot be read ({type(error).__name__}).") from error
    if not text:
        raise ConfigError(f"Token file {str(path)!r} is empty; write a bearer token into it.")
    return _checked(text, f"Token file {str(path)!r}")


@dataclass(frozen=True)
class ProjectedToken:
    """A service account's token as kfp.Client takes credentials; read at each call, because kubelet renews the file."""

    path: Path

    def refresh_api_key_hook(self, config: Any) -> None:
        """Give a request's configuration the token as it is now."""
        config.api_key["authorization"] = token_in(self.path)


def projected_token() -> ProjectedToken | None:
    """Return the service account's token, None where none is mounted."""
    path = Path(os.environ.get(PATH_VARIABLE, PATH))
    return ProjectedToken(path) if path.exists() else None


def _checked(text: str, where: str) -> str:
    if not _TOKEN.fullmatch(text):
        count = len(_TOKEN.sub("", text))
        raise ConfigError(
            f"{where} holds {len(text)} characters, {count} of them spaces, line breaks or not ASCII, which no header "
            "can carry. Give the token alone."
        )
    return text
