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


class FieldsConfig(Section):
    """What the source calls the fields of a row; one without a name here is called as it is."""

    prompt: str | None = Field(default=None, min_length=1)
    response: str | None = Field(default=None, min_length=1)
    messages: str | None = Field(default=None, min_length=1)
    id: str | None = Field(default=None, min_length=1)
    group: str | None = Field(default=None, min_length=1)
    metadata: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _read_each_once(self) -> Self:
        named = self.model_dump(exclude_none=True)
        if self.messages and (self.prompt or self.response):
            raise ValueError("messages and prompt or response are two forms of a row; name the fields of one")
        for field, name in named.items():
            if other := next((other for other in named if other != field and named[other] == name), None):
                raise ValueError(f"{field} and {other} are both read from {name!r}; name another field for one")
        if not self.messages and (self.prompt or "prompt") == (self.response or "response"):
            raise ValueError(f"prompt and response are both read from {self.prompt or self.response!r}; name both")
        return self


class DataConfig(Section):
    """Where the demonstrations are and which of them are accepted."""

    source: str = Field(min_length=1)
    fields: FieldsConfig | None
    max_prompt_chars: int = Field(gt=0)
    max_response_chars: int = Field(gt=0)
    max_bad_fraction: float = Field(ge=0, le=1)
    near_duplicate_threshold: float | None = Field(gt=0, le=1)
    splits: SplitsConfig
    unicode_form: Literal["keep", "NFC"]
