"""Recipe, DeepSpeed JSON and command line -> one checked, typed `Config`; imports no torch."""

from training.config.deepspeed_json import check_deepspeed
from training.config.loading import LoadedConfig, dump_resolved, load_config
from training.config.sections import (
    AdapterSection,
    CheckpointSection,
    Config,
    ModelSection,
    MonitorSection,
    PerfSection,
)

__all__ = [
    "AdapterSection",
    "CheckpointSection",
    "Config",
    "LoadedConfig",
    "ModelSection",
    "MonitorSection",
    "PerfSection",
    "check_deepspeed",
    "dump_resolved",
    "load_config",
]
