"""diffusers' cache hooks, put on for the generations of one blend and taken off without a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..uncompiled import uncompiled

if TYPE_CHECKING:
    from torch import nn

    from flowblend_plugins.trace.reporter import CallReporter
    from flowblend_plugins.types import Denoiser, Foreign, Output


def hooks_named(denoiser: Denoiser, name: str) -> list[Foreign]:
    """diffusers' hooks of one name on the modules of a denoiser, in the order of its modules."""
    registries = [module.__dict__.get("_diffusers_hook") for module in denoiser.modules()]
    hooks = [registry.get_hook(name) for registry in registries if registry is not None]
    return [hook for hook in hooks if hook is not None]


@contextlib.contextmanager
def enabled_cache(denoiser: Denoiser, config: object, trace: CallReporter) -> Iterator[None]:
    """A cache on a denoiser for the generations of one blend, from entering until leaving.

    Calls of other pipelines on the same denoiser pass it by. Nothing is left on if putting it on fails halfway.
    """
    had = {id(registry): set(registry.hooks) for registry in _registries(denoiser)}

    def added() -> list[tuple[Foreign, str]]:
        return [
            (registry, name)
            for registry in _registries(denoiser)
            for name in registry.hooks.keys() - had.get(id(registry), set())
        ]

    try:
        with _splitting_taken_off(denoiser):
            denoiser.enable_cache(config)
    except BaseException:  # halfway: nobody else would take its hooks off
        for registry, name in added():
            registry.remove_hook(name, recurse=False)
        raise
    for registry, name in added():
        _confine(registry.hooks[name], trace)
    try:
        yield
    finally:
        if denoiser._cache_config is config:  # else the user took it off, or put on another one
            denoiser.disable_cache()


@contextlib.contextmanager
def _splitting_taken_off(denoiser: Denoiser) -> Iterator[None]:
    """Take off, while entered, the hooks that split tokens between ranks: a cache must stand beneath them.

    Above them it would see whole tokens go into a block and a part come out.
    """
    split = [
        (registry, name, hook)
        for registry in _registries(denoiser)
        for name, hook in registry.hooks.items()
        if name.startswith(("cp_input---", "cp_output---"))
    ]
    for registry, name, _ in reversed(split):
        registry.remove_hook(name, recurse=False)
    try:
        yield
    finally:
        for registry, name, hook in split:
            registry.register_hook(hook, name)


@contextlib.contextmanager
def restored_hooks(denoiser: Denoiser) -> Iterator[None]:
    """Take away, on leaving, the registries, forwards and attributes that a cache has left behind."""
    modules = list(denoiser.modules())
    had = [("_diffusers_hook" in module.__dict__, "forward" in module.__dict__) for module in modules]
    had_config = "_cache_config" in denoiser.__dict__
    try:
        yield
    finally:
        for module, (had_registry, had_forward) in zip(modules, had, strict=True):
            registry = module.__dict__.get("_diffusers_hook")
            if registry is not None and not had_registry and not registry.hooks:
                del module._diffusers_hook
            forward = module.__dict__.get("forward")
            if not had_forward and getattr(forward, "__func__", None) is type(module).forward:
                del module.forward
        if not had_config and denoiser._cache_config is None:
            denoiser.__dict__.pop("_cache_config", None)
        registry = denoiser.__dict__.get("_diffusers_hook")
        if registry is not None:
            registry.invalidate_child_registries_cache()


def _registries(denoiser: Denoiser) -> list[Foreign]:
    registries = [module.__dict__.get("_diffusers_hook") for module in denoiser.modules()]
    return [registry for registry in registries if registry is not None]


def _confine(hook: Foreign, trace: CallReporter) -> None:
    """Let a hook act in denoiser calls of the blend alone; nobody else sets its context or lets it forget.

    Another pipeline on the same denoiser opens contexts of its own, or none, and resets at the end of its call.
    """
    reference, reset = hook.fn_ref, hook.reset_state
    before, hooked, after = reference.pre_forward, reference.forward, reference.post_forward

    @uncompiled
    def acts() -> bool:
        return trace.step is not None

    def pre_forward(module: nn.Module, *args: object, **kwargs: object) -> Output:
        return before(module, *args, **kwargs) if acts() else (args, kwargs)

    def forward(*args: object, **kwargs: object) -> Output:
        return (hooked if acts() else reference.original_forward)(*args, **kwargs)

    def post_forward(module: nn.Module, output: Output) -> Output:
        return after(module, output) if acts() else output

    def reset_state(module: nn.Module) -> Output:
        return reset(module) if trace.is_routing else module

    reference.pre_forward = hook.pre_forward = pre_forward
    reference.post_forward = hook.post_forward = post_forward
    if reference.original_forward is not None:  # else the hook has no forward of its own
        reference.forward = forward
    hook.reset_state = reset_state
    for states in vars(hook).values():
        if hasattr(states, "set_context") and "set_context" not in vars(states):  # hooks of one cache share it
            _confine_contexts(states, trace)


def _confine_contexts(states: Foreign, trace: CallReporter) -> None:
    set_context = states.set_context

    def set_own_context(context: object) -> None:
        if trace.is_routing:
            set_context(context)

    states.set_context = set_own_context
