"""The structured config of every stage: each key with its type, default, range and line of help."""

from avvp_dist.config.data import (
    CalibrateConfig,
    DecontaminateConfig,
    GroundConfig,
    Joining,
    Loading,
    PackConfig,
    Reading,
    SimulateConfig,
)
from avvp_dist.config.results import DemoConfig, EvaluateConfig, RefineConfig, TablesConfig
from avvp_dist.config.tracking import Tracking
from avvp_dist.config.training import (
    SIZES,
    Encoder,
    FinetuneConfig,
    Objective,
    Optimizer,
    Parser,
    ParsingData,
    ParsingLoss,
    PretrainConfig,
    PretrainData,
    Pretrained,
    TrainerSection,
)

__all__ = [
    "SIZES",
    "CalibrateConfig",
    "DecontaminateConfig",
    "DemoConfig",
    "Encoder",
    "EvaluateConfig",
    "FinetuneConfig",
    "GroundConfig",
    "Joining",
    "Loading",
    "Objective",
    "Optimizer",
    "PackConfig",
    "Parser",
    "ParsingData",
    "ParsingLoss",
    "PretrainConfig",
    "PretrainData",
    "Pretrained",
    "Reading",
    "RefineConfig",
    "SimulateConfig",
    "TablesConfig",
    "Tracking",
    "TrainerSection",
]
