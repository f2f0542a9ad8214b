"""The params of a run: frozen pydantic models, one section per concern, unknown keys refused.

What changes a reported number has no default here: `params.yaml` states it. Operational settings, which
change where things happen and not what comes out, have their default on the field.
"""

from understudy.config.align import (
    AlignConfig,
    DiscriminatorConfig,
    OwnTrunkConfig,
    PpoConfig,
    RolloutConfig,
    SelfPlayConfig,
)
from understudy.config.data import DataConfig, FieldsConfig, SplitsConfig
from understudy.config.evaluation import EvaluationConfig
from understudy.config.health import HealthConfig
from understudy.config.judges import BradleyTerryJudgeConfig, ChatJudgeConfig, JudgeConfig
from understudy.config.model import LoraConfig, ModelConfig, ScratchConfig
from understudy.config.params import Params, disagreements, load_params
from understudy.config.platform import LaunchSettings, PlatformConfig
from understudy.config.registry import PromotionConfig, RegistryConfig
from understudy.config.sections import Section, apply_override, section_sha256, validate
from understudy.config.services import NotifyConfig, RuntimeConfig, StorageConfig, TrackingConfig
from understudy.config.sft import SftConfig

__all__ = [
    "AlignConfig",
    "BradleyTerryJudgeConfig",
    "ChatJudgeConfig",
    "DataConfig",
    "DiscriminatorConfig",
    "EvaluationConfig",
    "FieldsConfig",
    "HealthConfig",
    "JudgeConfig",
    "LaunchSettings",
    "LoraConfig",
    "ModelConfig",
    "NotifyConfig",
    "OwnTrunkConfig",
    "Params",
    "PlatformConfig",
    "PpoConfig",
    "PromotionConfig",
    "RegistryConfig",
    "RolloutConfig",
    "RuntimeConfig",
    "ScratchConfig",
    "Section",
    "SelfPlayConfig",
    "SftConfig",
    "SplitsConfig",
    "StorageConfig",
    "TrackingConfig",
    "apply_override",
    "disagreements",
    "load_params",
    "section_sha256",
    "validate",
]
