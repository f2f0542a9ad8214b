"""Params of the demonstrations."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from understudy.config.sections import Section


class SplitsConfig(Section):
    """Fractions of groups (not rows) held out, decided by a hash of the group."""

    validation: float = Field(ge=0, lt=1)
    test: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")
        return self


class DataConfig(Section):
    """Where the demonstrations are and which of them are accepted."""

    source: str = Field(min_length=1)
    max_prompt_chars: int = Field(gt=0)
    max_response_chars: int = Field(gt=0)
    max_bad_fraction: float = Field(ge=0, le=1)
    near_duplicate_threshold: float | None = Field(gt=0, le=1)
    splits: SplitsConfig
    unicode_form: Literal["keep", "NFC"]
