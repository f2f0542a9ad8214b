"""Demonstrations as token ids, and the account of those that a model cannot be given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from understudy.errors import DataRefused, UnencodableText
from understudy.models.language_model import LanguageModel

MAX_SKIPPED_FRACTION = 0.05


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
    """Examples, and a line with the reason for each row that makes none."""

    examples: list[Example]
    skipped: list[dict[str, str]]


def encode(policy: LanguageModel, demonstrations: Sequence[DemonstrationLike], name: str = "the model") -> Encoded:
    """Encode demonstrations; rows that the model cannot be given whole are set aside with their reason.

    Raises:
        DataRefused: too many are, said of the model by its name.
    """
    examples: list[Example] = []
    skipped: list[dict[str, str]] = []
    for row in demonstrations:
        try:
            examples.append(_example(policy, row))
        except UnencodableText as error:
            skipped.append({"id": row.id, "reason": str(error)})
    if too_many(skipped, len(demonstrations)):
        raise DataRefused(
            f"{len(skipped)} of {len(demonstrations)} demonstrations cannot be given to {name} "
            f"(allowed: {MAX_SKIPPED_FRACTION:.0%}); the first: {skipped[0]['id']}: {skipped[0]['reason']}. "
            "Use a model that can be given them, leave such rows out of the source, or, where they are too long, lower "
            "data.max_prompt_chars and data.max_response_chars."
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


def within_horizon(examples: Sequence[Example], max_response_tokens: int) -> Encoded:
    """Set aside, with their reason, the examples whose response is longer than any that is sampled."""
    skipped = [
        {
            "id": example.id,
            "reason": f"{len(example.response)} response tokens exceed align.rollout.max_response_tokens of "
            f"{max_response_tokens}",
        }
        for example in examples
        if len(example.response) > max_response_tokens
    ]
    return Encoded([example for example in examples if len(example.response) <= max_response_tokens], skipped)


def too_many(skipped: Sequence[dict[str, str]], num_rows: int) -> bool:
    """Say whether more rows are set aside than a result may rest without."""
    return len(skipped) > MAX_SKIPPED_FRACTION * num_rows


def _example(policy: LanguageModel, row: DemonstrationLike) -> Example:
    messages = [dict(message) for message in row.messages]
    example = Example(row.id, policy.encode_prompt(messages), policy.encode_response(row.response))
    if example.num_tokens > policy.context_tokens:
        raise UnencodableText(
            f"{len(example.prompt)} prompt + {len(example.response)} response tokens "
            f"exceed the context of {policy.context_tokens}"
        )
    return example
