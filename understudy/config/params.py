"""The params of a whole run: its file, presets over it, overrides, and what no section sees alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from understudy.config.align import AlignConfig
from understudy.config.data import DataConfig
from understudy.config.evaluation import EvaluationConfig
from understudy.config.model import ModelConfig
from understudy.config.platform import PlatformConfig
from understudy.config.registry import PromotionConfig, RegistryConfig
from understudy.config.sections import Section, apply_override, overlaid, read_yaml, validate
from understudy.config.services import NotifyConfig, RuntimeConfig, StorageConfig, TrackingConfig
from understudy.config.sft import SftConfig
from understudy.errors import ConfigError


class Params(Section):
    """A whole run."""

    seed: int = Field(ge=0)
    data: DataConfig
    model: ModelConfig
    sft: SftConfig
    align: AlignConfig
    evaluation: EvaluationConfig
    registry: RegistryConfig
    promotion: PromotionConfig = PromotionConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: StorageConfig = StorageConfig()
    notify: NotifyConfig = NotifyConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    platform: PlatformConfig = PlatformConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if problems := list(disagreements(self.data, self.model, self.sft, self.align)):
            raise ValueError("; ".join(problems))
        return self


def load_params(path: Path, overrides: Iterable[str] = (), presets: Iterable[Path] = ()) -> Params:
    """Read a params file, lay presets over it in order, then apply `a.b=c` overrides (values parsed as YAML).

    A preset is a params file with only the values that it changes, and a mapping in an override is like one: keys that
    it does not name stay. A list replaces a list.

    Raises:
        ConfigError: naming every problem at once.
    """
    data = _read_mapping(path, "Params file", "Run in the project's folder, or name one with --params FILE.")
    for preset in presets:
        data = overlaid(data, _read_mapping(preset, "Preset", "pipelines/runs/ and examples/ hold some."))
    problems: list[str] = []
    for override in overrides:
        try:
            apply_override(data, override)
        except ConfigError as error:
            problems.append(str(error))
    return validate(Params, data, " + ".join(str(file) for file in (path, *presets)), problems)


def disagreements(data: DataConfig, model: ModelConfig, sft: SftConfig, align: AlignConfig) -> Iterator[str]:
    """What no section sees alone: settings that contradict each other, each with the remedy."""
    if align.demonstrations == "withheld" and sft.withheld_fraction == 0:
        yield (
            "align.demonstrations is withheld but sft.withheld_fraction is 0, so that none are; set "
            "sft.withheld_fraction above 0, or align.demonstrations=all"
        )
    if align.min_held_out_auc is not None and align.method == "selfplay":
        yield (
            f"align.min_held_out_auc is {align.min_held_out_auc:g} but align.method selfplay does not follow the "
            "discriminator, and would be held as it nears the expert; set align.min_held_out_auc=null"
        )
    if align.min_held_out_auc is not None and data.splits.validation == 0:
        yield (
            f"align.min_held_out_auc is {align.min_held_out_auc:g} but data.splits.validation is 0, which leaves no "
            "row to measure the AUC on; set data.splits.validation above 0, or align.min_held_out_auc=null"
        )


def _read_mapping(path: Path, what: str, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{what} {str(path)!r} {'is a folder' if path.is_dir() else 'does not exist'}. {remedy}")
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}. Correct the line it names.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not a mapping of sections such as `data:` and `sft:`.")
    return data
