"""Demonstrations as token ids, and the account of those that do not fit the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from understudy.errors import DataRefused
from understudy.models.language_model import LanguageModel


class DemonstrationLike(Protocol):
    """The part of a demonstration that encoding reads."""

    @property
    def id(self) -> str:
        """Identifier of the row."""

    @property
    def messages(self) -> Any:
        """Conversation up to the response."""

    @property
    def response(self) -> str:
        """The expert's answer."""


@dataclass(frozen=True)
class Example:
    """One demonstration as ids; the response ends with the end token."""

    id: str
    prompt: list[int]
    response: list[int]

    @property
    def num_tokens(self) -> int:
        """Prompt and response tokens."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Encoded:
    """Examples that fit, and a line for each that does not."""

    examples: list[Example]
    skipped: list[dict[str, str]]


def encode(
    policy: LanguageModel, demonstrations: Sequence[DemonstrationLike], max_skipped_fraction: float = 0.05
) -> Encoded:
    """Encode demonstrations; rows longer than the context are set aside with their reason.

    Raises:
        DataRefused: none fits, or more than `max_skipped_fraction` do not.
    """
    examples: list[Example] = []
    skipped: list[dict[str, str]] = []
    for row in demonstrations:
        messages = [dict(message) for message in row.messages]
        example = Example(row.id, policy.encode_prompt(messages), policy.encode_response(row.response))
        if example.num_tokens > policy.context_tokens:
            reason = (
                f"{len(example.prompt)} prompt + {len(example.response)} response tokens "
                f"exceed the context of {policy.context_tokens}"
            )
            skipped.append({"id": row.id, "reason": reason})
        else:
            examples.append(example)
    if demonstrations and (not examples or len(skipped) > max_skipped_fraction * len(demonstrations)):
        raise DataRefused(
            f"{len(skipped)} of {len(demonstrations)} demonstrations do not fit the model's context "
            f"(allowed: {max_skipped_fraction:.0%}); the first: {skipped[0]['id']}: {skipped[0]['reason']}. "
            "Use a model with a longer context, or lower data.max_prompt_chars and data.max_response_chars."
        )
    return Encoded(examples, skipped)


def too_little_room(
    policy: LanguageModel, examples: Sequence[Example], setting: str, max_response_tokens: int
) -> str | None:
    """A line on prompts that leave less of the context than a response may have by the setting; None without any."""
    rooms = [policy.context_tokens - len(example.prompt) for example in examples]
    short = [room for room in rooms if room < max_response_tokens]
    if not short:
        return None
    return (
        f"{len(short)} of {len(rooms)} prompts leave less of the context of {policy.context_tokens} tokens than "
        f"{setting} {max_response_tokens}, down to {min(short)}; their responses are cut there. Use a model with a "
        "longer context, or lower data.max_prompt_chars"
    )
