"""Configuration of the pipeline: frozen models, presets, overrides."""

from bitlm.config.overrides import PipelineConfig, configure
from bitlm.config.presets import PRESETS
from bitlm.config.sections import Sections
from bitlm.config.stages import (
    CorpusConfig,
    DiffusionConfig,
    EvaluateConfig,
    FinetuneConfig,
    Head,
    HeadConfig,
    ModelConfig,
    PretrainConfig,
    PromptConfig,
    ReportConfig,
    TokenizerConfig,
    TokensConfig,
    TrainConfig,
    TrainExecution,
)

__all__ = [
    "PRESETS",
    "CorpusConfig",
    "DiffusionConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "Head",
    "HeadConfig",
    "ModelConfig",
    "PipelineConfig",
    "PretrainConfig",
    "PromptConfig",
    "ReportConfig",
    "Sections",
    "TokenizerConfig",
    "TokensConfig",
    "TrainConfig",
    "TrainExecution",
    "configure",
]
