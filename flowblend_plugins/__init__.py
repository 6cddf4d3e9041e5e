"""FlowBlending for diffusers pipelines: a large and a small denoiser share one trajectory."""

from .adapter import Adapter, AttachTarget
from .blend import Blend, enable
from .errors import (
    AdapterError,
    ClockError,
    FlopCountError,
    FlowBlendError,
    PairError,
    PluginError,
    RoutingError,
    ScheduleError,
    StackError,
)
from .markers import hookimpl
from .presets import PairPreset
from .schedule import Stage, StageSchedule
from .step import StepContext
from .trace import Trace
from .traits import AdapterTraits

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterError",
    "AdapterTraits",
    "AttachTarget",
    "Blend",
    "ClockError",
    "FlopCountError",
    "FlowBlendError",
    "PairError",
    "PairPreset",
    "PluginError",
    "RoutingError",
    "ScheduleError",
    "StackError",
    "Stage",
    "StageSchedule",
    "StepContext",
    "Trace",
    "enable",
    "hookimpl",
]
