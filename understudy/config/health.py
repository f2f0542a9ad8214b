"""The limits within which an alignment is healthy; understudy/training/health.py says what becomes of others."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from understudy.config.sections import Section


class HealthConfig(Section):
    """Gates on the numbers of each round; null turns one off. A run that a gate stops ends with its healthy weights."""

    patience_rounds: int = Field(gt=0)  # rounds in a row outside a limit before the run is stopped
    length_ratio: tuple[float, float] | None  # mean response length over that of the SFT policy
    min_entropy_fraction: float | None = Field(gt=0, lt=1)  # of the SFT policy's token entropy
    min_distinct_2_fraction: float | None = Field(gt=0, lt=1)  # of the SFT policy's distinct token pairs
    max_kl_per_token: float | None = Field(gt=0)  # nats, to the SFT policy
    max_reward_clipped_fraction: float | None = Field(gt=0, lt=1)  # of a round's rewards, limited by align.reward_clip
    max_held_out_auc: float | None = Field(gt=0.5, le=1)  # at this value and above it counts as pinned at 1
    auc_measurements: int = Field(gt=0)  # the patience of max_held_out_auc, in measurements

    @model_validator(mode="after")
    def _length_may_stay_as_it_is(self) -> Self:
        if self.length_ratio is not None and not 0 <= self.length_ratio[0] < 1 < self.length_ratio[1]:
            raise ValueError(
                f"length_ratio {list(self.length_ratio)} must be [shortest, longest] with 0 <= shortest < 1 < longest, "
                "because the SFT policy itself has ratio 1"
            )
        return self
