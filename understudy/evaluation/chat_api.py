"""Requests to an OpenAI-compatible chat API: retries with backoff, and a cache by content."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.data.files import write_atomically
from understudy.errors import ConfigError, ServiceUnreachable

LONGEST_WAIT_SECONDS = 60.0
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}


@dataclass(frozen=True)
class ChatReply:
    """The text of a reply and the tokens that the service counted, 0 where it counts none."""

    text: str
    prompt_tokens: int
    answer_tokens: int


class ChatApi:
    """One base URL; redirects are not followed, so texts and key go nowhere else.

    Args:
        base_url: to which /chat/completions is added.
        api_key_env: variable with the key, sent as a bearer token; None sends none.
        timeout_seconds: of one request.
        max_attempts: of one question, before it is given up.
        sleep: waits between attempts.
    """

    def __init__(
        self,
        base_url: str,
        api_key_env: str | None,
        timeout_seconds: float,
        max_attempts: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.api_key_env = api_key_env
        self.timeout_seconds = timeout_seconds
        self.max_attempts = max_attempts
        self.sleep = sleep

    def ask(self, body: Mapping[str, Any]) -> ChatReply:
        """Return the reply; what is worth trying again is tried again.

        Raises:
            ServiceUnreachable: no good answer after all attempts, or one that more attempts cannot mend.
            ConfigError: the variable with the key is not set.
        """
        import requests

        headers = self._headers()
        problem, wait = "", 0.0
        for attempt in range(self.max_attempts):
            if attempt:
                self.sleep(wait)
            wait = min(LONGEST_WAIT_SECONDS, 0.5 * 2**attempt)
            try:
                # The function as `auth` keeps a .netrc from replacing the header.
                answer = requests.post(
                    self.url,
                    json=body,
                    headers=headers,
                    timeout=self.timeout_seconds,
                    allow_redirects=False,
                    auth=lambda request: request,
                )
            except requests.RequestException as error:
                problem = type(error).__name__
                continue
            if answer.status_code == 200:
                reply = _reply(answer)
                if reply is not None:
                    return reply
                problem = "an answer that is no chat completion"
                continue
            problem = f"HTTP status {answer.status_code}"
            if answer.status_code not in _RETRIED:
                raise self._unreachable(problem, attempt + 1)
            wait = _retry_after(answer.headers.get("Retry-After"), wait)
        raise self._unreachable(problem, self.max_attempts)

    def cached(self, folder: Path | None, body: Mapping[str, Any]) -> ChatReply | None:
        """Return the reply that was kept for this question, None where there is none that can be read."""
        if folder is None:
            return None
        try:
            return ChatReply(**json.loads(self._file(folder, body).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, folder: Path | None, body: Mapping[str, Any], reply: ChatReply) -> None:
        """Keep a reply, whole or not at all; a disk that refuses costs the cache, not the verdict."""
        if folder is None:
            return
        with suppress(OSError):
            write_atomically(self._file(folder, body), json.dumps(vars(reply)).encode())

    def _file(self, folder: Path, body: Mapping[str, Any]) -> Path:
        text = json.dumps([self.url, body], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return folder / digest[:2] / f"{digest}.json"

    def _headers(self) -> dict[str, str]:
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"The variable {self.api_key_env} that is to hold the key for {self.url} is not set. "
                "Set it, or take chat.api_key_env out of the judge."
            )
        return {"Authorization": f"Bearer {key}"}

    def _unreachable(self, problem: str, attempts: int) -> ServiceUnreachable:
        return ServiceUnreachable(
            f"The judge at {self.url} gave {problem} on attempt {attempts} of {self.max_attempts}. Check the URL, the "
            "model's name and the key, then run the same command again; verdicts given so far are kept."
        )


def _reply(answer: Any) -> ChatReply | None:
    try:
        content = answer.json()
        text = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        counts = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return ChatReply(text, *counts) if isinstance(text, str) else None


def _retry_after(header: str | None, otherwise: float) -> float:
    from email.utils import parsedate_to_datetime

    if not header:
        return otherwise
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return otherwise
    return min(LONGEST_WAIT_SECONDS, max(0.0, seconds)) if seconds == seconds else otherwise
