"""Noise schedule of a pipeline's own scheduler, to be kept when another takes its place."""

from __future__ import annotations

import inspect

from flowblend_plugins.types import DiffusersClass, Keywords, Scheduler

# What a scheduler config says of the noise schedule that the denoiser is sampled on, with the value that says nothing.
# A sampler that takes no such argument would ignore it in silence.
_NEUTRAL = {
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
    "timestep_type": "discrete",
}

# What the denoiser was trained on. The defaults of these differ from class to class, so they are handed on even where
# the old scheduler has its own; of all else diffusers hands on what was said, and the new class fills in the rest.
_TRAINED_ON = frozenset(
    {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"}
)

# How a sampler places its steps and solves between them: its own business, of no meaning to a sampler of another class,
# though many classes have an argument of the same name.
_OF_ONE_CLASS = frozenset(
    {
        "algorithm_type",
        "corrector_order",
        "disable_corrector",
        "euler_at_final",
        "lower_order_final",
        "predict_x0",
        "predictor_order",
        "solver_order",
        "solver_p",
        "solver_type",
        "stochastic_sampling",
        "tau_func",
        "use_lu_lambdas",
        "variance_type",
    }
)


def is_flow(scheduler: Scheduler) -> bool:
    """Flow-matching samplers either say so, or know no variance schedule (betas) at all."""
    return bool(scheduler.config.get("use_flow_sigmas")) or "beta_start" not in scheduler.config


def flow_shift_of(scheduler: Scheduler) -> float:
    """The shift of its sigmas, under the name that this scheduler has for it."""
    if "flow_shift" in inspect.signature(type(scheduler).__init__).parameters:
        return scheduler.config.flow_shift
    if "shift" in inspect.signature(type(scheduler).__init__).parameters:
        return getattr(scheduler, "shift", scheduler.config.shift)
    return 1.0


def inherited_config(scheduler: Scheduler, new_class: DiffusersClass) -> Keywords:
    """Part of a scheduler's config that a scheduler of ``new_class`` is built with."""
    takes = inspect.signature(new_class.__init__).parameters
    same_class = type(scheduler).__name__ == new_class.__name__
    kept = {
        key: value
        for key, value in scheduler.config.items()
        if key.startswith("_") or (key in takes and (same_class or key not in _OF_ONE_CLASS))
    }
    left_at_default = scheduler.config.get("_use_default_values", ())
    return kept | {"_use_default_values": [key for key in left_at_default if key not in _TRAINED_ON]}


def lost_noise_schedule(scheduler: Scheduler, new_class: DiffusersClass) -> list[str]:
    """Settings of a scheduler's noise schedule that ``new_class`` does not have, as ``"name=value"``."""
    has, config = inspect.signature(new_class.__init__).parameters, scheduler.config
    unknown = {field: neutral for field, neutral in _NEUTRAL.items() if field not in has}
    return [f"{f}={config[f]!r}" for f, neutral in unknown.items() if config.get(f, neutral) != neutral]
