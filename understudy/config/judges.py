"""The params of judges: who says how good a response is, and what asking costs."""

from __future__ import annotations

import os
import re
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from understudy.config.sections import Section


class ChatJudgeConfig(Section):
    """How a chat model is asked; read with kind: chat, the only judge that sends texts away."""

    model: str = Field(min_length=1)
    api_key_env: str | None = None  # name of the variable that holds the key; never the key
    criterion: str = "Which answer is better: correct, complete and to the point?"
    max_answer_tokens: int = Field(default=256, gt=0)
    max_concurrent: int = Field(default=4, gt=0)
    max_attempts: int = Field(default=5, gt=0)
    timeout_seconds: float = Field(default=60.0, gt=0)
    price_per_million_prompt_tokens: float = Field(default=0.0, ge=0)
    price_per_million_answer_tokens: float = Field(default=0.0, ge=0)


class BradleyTerryJudgeConfig(Section):
    """How the reward model is trained inside evaluation; read with kind: bradley_terry."""

    num_pairs: int = Field(default=512, gt=0)  # demonstrations of the train split, each against one sample of SFT
    epochs: int = Field(default=2, gt=0)
    batch_pairs: int = Field(default=16, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0, le=10)
    learned_spread: bool = False  # Eq 26 with a standard deviation for each response; else Eq 27


class JudgeConfig(Section):
    """One judge of sampled quality; a higher score is better."""

    name: str = Field(min_length=1)
    kind: Literal["callable", "exact_match", "regex", "reward_model", "bradley_terry", "chat"]
    # "file.py:function" or "package.module:function"; a pattern; a folder; the base URL of a chat API
    target: str | None = None
    # Left out of what is written down where absent, so that older params keep their digests.
    chat: ChatJudgeConfig | None = Field(default=None, exclude_if=lambda value: value is None)
    bradley_terry: BradleyTerryJudgeConfig | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def code(self) -> str:
        """The target where it names code or weights on this machine, else ""."""
        return self.target or "" if self.kind in ("callable", "reward_model") else ""

    @field_validator("target")
    @classmethod
    def _expanded(cls, target: str | None, info: ValidationInfo) -> str | None:
        is_path = info.data.get("kind") in ("callable", "reward_model")
        return os.path.expanduser(target) if target and is_path else target

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind not in ("exact_match", "bradley_terry") and not self.target:
            raise ValueError(f"judge {self.name!r} of kind {self.kind} needs a target")
        for kind in ("chat", "bradley_terry"):
            if getattr(self, kind) is not None and self.kind != kind:
                raise ValueError(f"judge {self.name!r} of kind {self.kind} does not read `{kind}`; set kind: {kind}")
        if self.kind == "chat" and self.chat is None:
            raise ValueError(f"judge {self.name!r} of kind chat needs `chat: {{model: NAME}}`")
        return self

    @model_validator(mode="after")
    def _target_readable(self) -> Self:
        target = self.target or ""
        if self.kind == "regex":
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(f"judge {self.name!r}: {target!r} is no regular expression: {error}") from error
        if self.kind == "chat" and not re.fullmatch(r"https?://[^/@?#\s]+[^@?#\s]*", target):
            raise ValueError(
                f"judge {self.name!r}: target is not a base URL such as http://localhost:8000/v1, without user, "
                "password or query; a key goes into a variable that chat.api_key_env names"
            )
        return self
