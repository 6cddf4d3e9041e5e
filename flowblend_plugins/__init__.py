"""FlowBlending for diffusers pipelines: a large and a small denoiser share one trajectory."""

from typing import TYPE_CHECKING, Any

from .adapter import Adapter, AttachTarget
from .configuration import read_configuration
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
from .traits import AdapterTraits

if TYPE_CHECKING:
    from .blend import Blend, enable
    from .trace import Trace

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
    "read_configuration",
]

# Torch takes a second or more to load, which a plugin module or a command line that prints its help should not pay.
_MODULES_THAT_NEED_TORCH = {"Blend": ".blend", "enable": ".blend", "Trace": ".trace"}

if not TYPE_CHECKING:  # a type checker would take any attribute at all to exist

    def __getattr__(name: str) -> Any:
        if name not in _MODULES_THAT_NEED_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(_MODULES_THAT_NEED_TORCH[name], __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
