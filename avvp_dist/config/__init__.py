"""Typed configs of every stage: each key has a type, a default, a range and one line of help.

A stage's config is a dataclass in the file of its subject. A new key is a new field: `--help`,
`--print-config`, checks and the documentation follow from it. How files and overrides are merged
(`files.py`) and how words are parsed (`command_line.py`) knows no stage and no key.
"""

from avvp_dist.config.experiments import (
    DemoConfig,
    LabelsStudyConfig,
    StudyConfig,
    SweepConfig,
    TablesConfig,
)
from avvp_dist.config.extraction import ExtractConfig, MediaConfig
from avvp_dist.config.finetuning import (
    FinetuneConfig,
    FinetuneDataConfig,
    ParserConfig,
    ParsingLossConfig,
    PretrainedEncoderConfig,
)
from avvp_dist.config.grounding import (
    CalibrateConfig,
    DecontaminateConfig,
    GroundConfig,
    LinkConfig,
)
from avvp_dist.config.parsers import (
    EvaluateConfig,
    ImportConfig,
    RefineConfig,
    ScoreConfig,
)
from avvp_dist.config.parsing import ParseConfig, ParseVideoConfig
from avvp_dist.config.pretraining import (
    OBJECTIVES,
    SIZES,
    TERMS,
    EncoderConfig,
    ObjectiveConfig,
    PretrainConfig,
    PretrainDataConfig,
)
from avvp_dist.config.shards import (
    InspectConfig,
    LoaderConfig,
    PackConfig,
    ReadConfig,
    SimulateConfig,
)
from avvp_dist.config.tracking import (
    PromoteConfig,
    SyncConfig,
    TrackingConfig,
)
from avvp_dist.config.trainer import (
    OptimizerConfig,
    TrainerConfig,
)

__all__ = [
    "OBJECTIVES",
    "SIZES",
    "TERMS",
    "CalibrateConfig",
    "DecontaminateConfig",
    "DemoConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "ExtractConfig",
    "FinetuneConfig",
    "FinetuneDataConfig",
    "GroundConfig",
    "ImportConfig",
    "InspectConfig",
    "LabelsStudyConfig",
    "LinkConfig",
    "LoaderConfig",
    "MediaConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PackConfig",
    "ParseConfig",
    "ParseVideoConfig",
    "ParserConfig",
    "ParsingLossConfig",
    "PretrainConfig",
    "PretrainDataConfig",
    "PretrainedEncoderConfig",
    "PromoteConfig",
    "ReadConfig",
    "RefineConfig",
    "ScoreConfig",
    "SimulateConfig",
    "StudyConfig",
    "SweepConfig",
    "SyncConfig",
    "TablesConfig",
    "TrackingConfig",
    "TrainerConfig",
]
