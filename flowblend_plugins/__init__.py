"""FlowBlending for diffusers pipelines: a large and a small denoiser share one trajectory."""

from typing import TYPE_CHECKING, Any

from .contract.adapter import Adapter, AttachTarget
from .contract.call import DenoiserCall
from .contract.markers import hookimpl
from .contract.traits import AdapterTraits, Composition, Family, Verdict
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
    UsageError,
)
from .files.configuration import read_configuration
from .moved import redirect
from .pairs.preset import PairPreset
from .schedule import Stage, StageSchedule
from .step import Outcome, StepContext
from .types import Denoiser, Pipeline

if TYPE_CHECKING:
    from .api import enable
    from .blend import Blend
    from .trace.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterError",
    "AdapterTraits",
    "AttachTarget",
    "Blend",
    "ClockError",
    "Composition",
    "Denoiser",
    "DenoiserCall",
    "Family",
    "FlopCountError",
    "FlowBlendError",
    "Outcome",
    "PairError",
    "PairPreset",
    "Pipeline",
    "PluginError",
    "RoutingError",
    "ScheduleError",
    "StackError",
    "Stage",
    "StageSchedule",
    "StepContext",
    "Trace",
    "UsageError",
    "Verdict",
    "enable",
    "hookimpl",
    "read_configuration",
]

redirect(
    __name__,
    {
        "adapter": "flowblend_plugins.contract.adapter",
        "adapter_spec": "flowblend_plugins.contract.spec",
        "calibrate": "flowblend_plugins.calibration.measuring",
        "calibrate_boundaries": "flowblend_plugins.calibration.boundaries",
        "call": "flowblend_plugins.contract.call",
        "cli.output": "flowblend_plugins.files.writing",
        "clock": "flowblend_plugins.routing.clock",
        "configuration": "flowblend_plugins.files.configuration",
        "flops": "flowblend_plugins.trace.flops",
        "generation": "flowblend_plugins.trace.generation",
        "judge": "flowblend_plugins.contract.verdict",
        "markers": "flowblend_plugins.contract.markers",
        "pair": "flowblend_plugins.pairs.loading",
        "pair_configs": "flowblend_plugins.pairs.configs",
        "pair_facts": "flowblend_plugins.pairs.facts",
        "pair_inputs": "flowblend_plugins.pipelines.control_scales",
        "pair_source": "flowblend_plugins.pairs.stored",
        "pipeline": "flowblend_plugins.pipelines.components",
        "presets": "flowblend_plugins.pairs.preset",
        "replay": "flowblend_plugins.routing.replay",
        "router": "flowblend_plugins.routing.router",
        "stack": "flowblend_plugins.contract.stack",
        "trace_summary": "flowblend_plugins.trace.summary",
        "traits": "flowblend_plugins.contract.traits",
        "video": "flowblend_plugins.files.video",
    },
)

# Torch takes a second or more to load, which a plugin module or a command line that prints its help should not pay.
_MODULES_THAT_NEED_TORCH = {"Blend": ".blend", "enable": ".api", "Trace": ".trace"}

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
