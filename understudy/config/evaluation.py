"""Params of the evaluation."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from understudy.config.judges import JudgeConfig
from understudy.config.sections import Section


class EvaluationConfig(Section):
    """What is measured on the test split."""

    max_prompts: int = Field(gt=0)
    max_response_tokens: int = Field(gt=0)
    temperatures: tuple[float, ...] = Field(min_length=1)  # searched on the validation split
    judges: tuple[JudgeConfig, ...]
    tuning_judge: str | None
    confidence: float = Field(gt=0.5, lt=1)
    samples_shown: int = Field(ge=0)

    @field_validator("temperatures")
    @classmethod
    def _temperatures_are_warm(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        cold = [temperature for temperature in temperatures if temperature <= 0]
        if cold:
            raise ValueError(
                f"{cold} cannot be sampled at; give numbers above 0. Greedy responses need none: every policy is also "
                "decoded greedily, as the decoding `greedy`"
            )
        return temperatures

    @model_validator(mode="after")
    def _tuning_judge_exists(self) -> Self:
        names = [judge.name for judge in self.judges]
        if len(set(names)) != len(names):
            raise ValueError(f"two judges share a name: {names}")
        if self.tuning_judge is not None and self.tuning_judge not in names:
            raise ValueError(f"tuning_judge {self.tuning_judge!r} is not among the judges {names}")
        return self
