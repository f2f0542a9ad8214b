"""The typed `gate.yaml`: frozen pydantic models, unknown keys refused with the closest valid name."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from understudy.config import Section, validate
from understudy.config.sections import did_you_mean, read_yaml
from understudy.errors import ConfigError
from understudy.evaluation.names import CHAMPION, EXPERT_TEXT

OF_EXPERT_TEXT = ("nll", "nll_per_character")
OF_SAMPLES = ("length_tokens", "length_characters", "eos_rate", "distinct_1", "distinct_2", "distinct_3")
JUDGE = re.compile(r"judge:(?P<name>.+)")
LOWER_IS_BETTER = ("nll", "nll_per_character")
BOUNDED_BY_ONE = ("eos_rate", "distinct_1", "distinct_2", "distinct_3")


class Rule(Section):
    """What both kinds of rule say: which number, of which responses, against whom."""

    metric: str = Field(min_length=1)  # judge:NAME | nll | nll_per_character | length_* | eos_rate | distinct_*
    decoding: str | None = None  # "tuned", "T=1" or "greedy"; null for metrics of the expert's text
    against: str = CHAMPION
    better: Literal["higher", "lower"] | None = None  # null: lower for nll, higher for everything else
    scale: Literal["difference", "win_rate"] = "difference"
    score_range: tuple[float, float] | None = None  # what the judge could say at all; null: what was seen
    standard_deviation: float | None = Field(default=None, gt=0)  # of paired differences; null: as measured
    design_effect: float = Field(default=1.0, ge=1)  # with standard_deviation: prompts that count as one

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, data: Any) -> Any:
        # Pydantic takes true for 1.0, and `margin: yes` would let everything pass.
        for name, value in data.items() if isinstance(data, dict) else ():
            if isinstance(value, bool):
                raise ValueError(f"{name} is {str(value).lower()}, which is no number")
        return data

    @property
    def where(self) -> str:
        """The decoding of the responses that the metric reads."""
        return EXPERT_TEXT if self.metric in OF_EXPERT_TEXT else str(self.decoding)

    @property
    def name(self) -> str:
        """The metric and its decoding, as tables show them."""
        scale = " win rate" if self.scale == "win_rate" else ""
        return f"{self.metric}{scale}" + ("" if self.where == EXPERT_TEXT else f" ({self.where})")

    @property
    def lower_is_better(self) -> bool:
        """Whether differences are turned round so that positive means better."""
        return self.better == "lower" if self.better else self.metric in LOWER_IS_BETTER

    @model_validator(mode="after")
    def _known_metric(self) -> Self:
        named = (*OF_EXPERT_TEXT, *OF_SAMPLES)
        if self.metric not in named and not JUDGE.fullmatch(self.metric):
            hint = did_you_mean(self.metric, named, f"valid: judge:NAME, {', '.join(named)}")
            raise ValueError(f"unknown metric {self.metric!r}; {hint}")
        if self.metric in OF_EXPERT_TEXT and self.decoding is not None:
            raise ValueError(f"{self.metric} reads the expert's text and has no decoding; remove {self.decoding!r}")
        if self.metric not in OF_EXPERT_TEXT and self.decoding is None:
            raise ValueError(f"{self.metric} needs a decoding: tuned, T=1 or greedy")
        if self.scale == "win_rate" and (self.metric in OF_EXPERT_TEXT or self.metric.startswith("distinct_")):
            raise ValueError(f"{self.metric} is one number for a whole set; a win rate needs one per prompt")
        if self.score_range is not None and self.score_range[0] >= self.score_range[1]:
            raise ValueError(f"score_range {list(self.score_range)} is empty; give [lowest, highest]")
        return self


class PrimaryRule(Rule):
    """What the challenger must be better at: the difference must exceed `minimum_improvement`.

    `detect`, above the minimum, is the improvement that the gate must not miss; it sets the sample size.
    """

    minimum_improvement: float = Field(ge=0)
    detect: float = Field(gt=0)

    @model_validator(mode="after")
    def _something_to_detect(self) -> Self:
        if self.detect <= self.minimum_improvement:
            raise ValueError(
                f"detect {self.detect} must exceed minimum_improvement {self.minimum_improvement}: "
                "an improvement of just the minimum cannot be told from it with any number of prompts"
            )
        return self


class GuardRule(Rule):
    """What the challenger must not lose: one of five limits, the first three relative to `against`."""

    margin: float | None = Field(default=None, ge=0)  # at most this much worse, in the metric's units
    relative_margin: float | None = Field(default=None, ge=0, lt=1)  # at most this fraction worse
    max_drift: float | None = Field(default=None, gt=0, lt=1)  # at most this fraction away, in either direction
    floor: float | None = None  # at least this, whatever the champion has
    ceiling: float | None = None  # at most this

    @property
    def limit(self) -> str:
        """The name of the one limit that is set."""
        return next(name for name in LIMITS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(LIMITS)}; given: {', '.join(given) or 'none'}")
        if self.scale == "win_rate" and given != ["margin"]:
            raise ValueError(f"a win rate is already a comparison; it takes a margin, not {given[0]}")
        if self.standard_deviation is not None and given != ["margin"]:
            raise ValueError(f"standard_deviation plans a sample for a margin; {given[0]} uses what was measured")
        return self


LIMITS = ("margin", "relative_margin", "max_drift", "floor", "ceiling")


class ProvenanceRules(Section):
    """What promotion asks of where a version comes from; checked by promotion, not by `decide`."""

    allow_dirty_code: bool
    require_signature: bool


class Gate(Section):
    """A whole `gate.yaml`."""

    confidence: float = Field(gt=0.5, lt=1)  # one-sided; 1 - confidence is the gate's type-I error
    power: float = Field(gt=0.5, lt=1)  # chance to see what is worth seeing
    minimum_groups: int = Field(ge=2)  # independent groups of prompts, below which no interval is trusted
    max_undecided: float = Field(ge=0, lt=1)  # fraction of prompts that a judge may leave undecided
    primaries_needed: Literal["all", "any"]
    no_champion: Literal["accept", "compare_to_sft", "refuse"]
    primary: tuple[PrimaryRule, ...] = Field(min_length=1)
    guards: tuple[GuardRule, ...]
    provenance: ProvenanceRules

    @property
    def alpha(self) -> float:
        """Type-I error of the whole gate: one decision on a challenger that is no better than required."""
        return 1 - self.confidence

    @model_validator(mode="after")
    def _no_rule_twice(self) -> Self:
        keys = Counter((rule.name, rule.against) for rule in self.primary)
        guards = Counter((rule.name, rule.against, rule.limit) for rule in self.guards)
        twice = [" against ".join(key[:2]) for key, times in [*keys.items(), *guards.items()] if times > 1]
        if twice:
            raise ValueError(f"a rule is given twice: {', '.join(twice)}; keep the stricter one")
        return self


def load_gate(path: Path) -> Gate:
    """Read a gate file.

    Raises:
        ConfigError: it does not exist, is no YAML, or is wrong somewhere: every problem at once.
    """
    if not path.is_file():
        raise ConfigError(f"Gate file {str(path)!r} does not exist. Name one with --gate FILE; docs/gate.md has one.")
    data = _parsed(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not a mapping with `primary:` and `guards:`.")
    return validate(Gate, data, where=str(path))


def _parsed(path: Path) -> Any:
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}. Correct the line it names.") from error
    except OSError as error:
        raise ConfigError(f"Gate file {str(path)!r} cannot be read: {error.strerror}.") from error
