"""Building a plugin manager: load, check, block. There is no global one: each blend and each command makes its own."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.metadata
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pluggy

from . import hookspecs
from .contract.adapter import Adapter
from .contract.call import DenoiserCall
from .contract.markers import HOOK_PREFIX, PROJECT_NAME
from .contract.spec import adapter_from_spec
from .contract.traits import AdapterTraits
from .errors import AdapterError, FlowBlendError, PluginError, add_note
from .hookspecs import Metric
from .pairs.preset import PairPreset
from .types import Keywords, Output, Pipeline

BLOCK_VARIABLE = "FLOWBLEND_BLOCK"
_AT_LOADING = ("flowblend_register_", "flowblend_adopt")


@dataclasses.dataclass(frozen=True)
class PluginOrigin:
    """Origin of a plugin; ``distribution`` is ``None`` for one that was passed as an object, or by an adapter."""

    name: str
    distribution: str | None = None
    version: str | None = None
    kind: str = "plugin"

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}" + (f" of {self.distribution} {self.version}" if self.distribution else "")

    @property
    def remedy(self) -> str:
        if self.distribution is None:
            return f"Correct the object passed as {self.kind}."
        return f"Fix or uninstall {self.distribution}, or set {BLOCK_VARIABLE}={self.name} to run without it."

    def blame(self, error: BaseException, what: str, keeps_errors: bool = False) -> None:
        """Name this plugin in an error that it raised: as a ``PluginError``, or in a note where the error goes on.

        Ctrl-C goes on in any case. Everything else is turned into a ``PluginError``: ``SystemExit`` would end the
        user's program without a word.

        Args:
            error: as it was raised.
            what: words between the plugin and the cause.
            keeps_errors: let every ``Exception`` go on too, as a generation does: a server may be waiting for its own.
        """
        if isinstance(error, PluginError) or (keeps_errors and isinstance(error, FlowBlendError)):
            return
        if isinstance(error, KeyboardInterrupt) or (keeps_errors and isinstance(error, Exception)):
            if not hasattr(error, "__notes__"):
                add_note(error, f"{str(self)[0].upper()}{str(self)[1:]} {what}. {self.remedy}")
            return
        raise PluginError(f"{self} {what}: {_cause(error)}. {self.remedy}") from error


class FlowblendPluginManager(pluggy.PluginManager):
    """A pluggy manager that knows where each of its plugins comes from."""

    def __init__(self) -> None:
        super().__init__(PROJECT_NAME)
        self.add_hookspecs(hookspecs)
        self.origins: dict[str, PluginOrigin] = {}

    def origin(self, plugin: object) -> PluginOrigin:
        """The origin of a registered plugin."""
        name = self.get_name(plugin) or type(plugin).__name__
        return self.origins.get(name, PluginOrigin(name))

    def add(self, plugin: object, origin: PluginOrigin) -> None:
        """Register a plugin and hold it to the contract.

        Raises:
            PluginError: it implements a hook that does not exist or none at all, takes arguments that a hook does not
                have, or is registered already.
        """
        present = self.get_name(plugin)
        if present is not None:
            raise PluginError(f"{self.origins[present]} and {origin} are the same object. {origin.remedy}")
        self.origins[origin.name] = origin
        _check_hooks(plugin, origin, self)
        try:
            self.register(plugin, name=origin.name)
        except BaseException as error:
            origin.blame(error, "cannot be registered")
            raise
        callers = self.get_hookcallers(plugin) or ()
        if not callers and origin.distribution is None:
            raise PluginError(
                f"{origin} is {plugin!r}, which implements no hook. Give an object with flowblend_* methods that are "
                "marked with flowblend_plugins.hookimpl, or leave it out."
            )
        for caller in callers:
            for found in caller.get_hookimpls():
                if found.plugin is plugin and not (found.wrapper or found.hookwrapper):
                    found.function = _blaming(found.function, origin, caller.name)  # pyright: ignore  # pluggy declares it final

    def drop(self, plugin: object) -> None:
        """Take a plugin out again, so that another one may have its name."""
        self.origins.pop(self.get_name(plugin) or "", None)
        self.unregister(plugin)


def make_plugin_manager(plugins: Iterable[object] = ()) -> FlowblendPluginManager:
    """All installed plugins but the blocked ones, and ``plugins`` beside them, checked against the contract.

    The environment variable ``FLOWBLEND_BLOCK`` names plugins to leave out, separated by commas.

    Raises:
        PluginError: with the plugin, its distribution and version, the cause, and what to do.
    """
    manager = FlowblendPluginManager()
    blocked = {name.strip() for name in os.environ.get(BLOCK_VARIABLE, "").split(",")} - {""}
    for name in blocked:
        manager.set_blocked(name)
    for entry_point in importlib.metadata.entry_points(group=PROJECT_NAME):
        if entry_point.name in blocked:
            continue
        distribution = entry_point.dist
        origin = PluginOrigin(
            entry_point.name,
            distribution.metadata["Name"] if distribution else None,
            distribution.version if distribution else None,
        )
        first = manager.origins.get(origin.name)
        if first is not None:
            raise PluginError(
                f"two plugins are named {origin.name!r}: one of {first.distribution} {first.version}, one of "
                f"{origin.distribution} {origin.version}. Uninstall one of them, or set "
                f"{BLOCK_VARIABLE}={origin.name} to run without both."
            )
        try:
            plugin = entry_point.load()
        except BaseException as error:
            origin.blame(error, "cannot be imported")
            raise
        manager.add(plugin, origin)
    for plugin in _passed(plugins):
        manager.add(plugin, PluginOrigin(_free_name(manager, plugin)))
    for collect in (adapters_by_name, pairs_by_name, metrics_by_name):
        collect(manager)
    return manager


def adapters_by_name(manager: FlowblendPluginManager) -> dict[str, type[Adapter]]:
    """Adapter classes of all plugins by name. Raises ``PluginError`` for a repeated name or a foreign class."""
    found = _Contributions("adapters", "flowblend_register_adapters", manager)
    for origin, adapters in found.results():
        for adapter in adapters:
            problem = _adapter_problem(adapter)
            if problem:
                raise PluginError(f"{origin} registers {adapter!r} as an adapter, but {problem}. {origin.remedy}")
            found.add(adapter.name, adapter, origin)
    return found.by_name


def pairs_by_name(manager: FlowblendPluginManager) -> dict[str, PairPreset]:
    """Pairs of all plugins by name. Raises ``PluginError`` for a repeated name or no ``PairPreset``."""
    found = _Contributions("pairs", "flowblend_register_pairs", manager)
    for origin, pairs in found.results():
        for pair in pairs:
            if not isinstance(pair, PairPreset):
                raise PluginError(f"{origin} registers {pair!r} as a pair, expected a PairPreset. {origin.remedy}")
            found.add(pair.name, pair, origin)
    return found.by_name


def metrics_by_name(manager: FlowblendPluginManager) -> dict[str, Metric]:
    """Metrics of all plugins by name. Raises ``PluginError`` for a repeated name or a metric that cannot be called."""
    found = _Contributions("metrics", "flowblend_register_metrics", manager)
    for origin, metrics in found.results():
        if not isinstance(metrics, Mapping) or not all(callable(metric) for metric in metrics.values()):
            raise PluginError(
                f"{origin} registers {metrics!r} as metrics, expected a mapping of names to functions. {origin.remedy}"
            )
        for name, metric in metrics.items():
            found.add(name, metric, origin)
    return found.by_name


def make_adapters(manager: FlowblendPluginManager, specs: Iterable[str | Adapter]) -> tuple[Adapter, ...]:
    """Adapter objects from ``"name(option=value)"`` texts; adapter objects stay as they are.

    Raises:
        AdapterError: a name or an option is wrong.
    """
    known = adapters_by_name(manager)
    adapters = []
    for spec in specs:
        if isinstance(spec, Adapter):
            adapters.append(spec)
        elif isinstance(spec, str):
            adapters.append(adapter_from_spec(spec, known))
        else:
            raise AdapterError(f'adapter {spec!r}: expected a text like "unipc(num_inference_steps=25)" or an Adapter.')
    return tuple(adapters)


def adopted_adapters(
    manager: FlowblendPluginManager, pipe: Pipeline, requested: Iterable[Adapter]
) -> tuple[Adapter, ...]:
    """Adapters for set-ups that a pipeline brings along, without those that were asked for by name already.

    Raises:
        PluginError: a plugin fails, or gives something that is no adapter.
    """
    names = {adapter.name for adapter in requested}
    adopted: list[Adapter] = []
    for implementation in manager.hook.flowblend_adopt.get_hookimpls():
        origin = manager.origin(implementation.plugin)
        found: Output = implementation.function(*[pipe][: len(implementation.argnames)]) or ()
        if not isinstance(found, Iterable):
            raise PluginError(f"{origin}: flowblend_adopt gave {found!r}, expected adapters. {origin.remedy}")
        found = list(found)
        for adapter in found:
            if not isinstance(adapter, Adapter):
                raise PluginError(f"{origin}: flowblend_adopt gave {adapter!r}, expected an Adapter. {origin.remedy}")
        adopted += [adapter for adapter in found if adapter.name not in names]
    return tuple(adopted)


class _Contributions:
    """Contributions through one register hook, each name once, each with the plugin that gave it."""

    def __init__(self, what: str, hook: str, manager: FlowblendPluginManager) -> None:
        self.by_name: Keywords = {}
        self._givers: dict[str, PluginOrigin] = {}
        self._what, self._hook, self._manager = what, hook, manager

    def results(self) -> Iterator[tuple[PluginOrigin, Any]]:
        """Results plugin by plugin: a call of the hook would not say which plugin gave which."""
        for implementation in getattr(self._manager.hook, self._hook).get_hookimpls():
            origin = self._manager.origin(implementation.plugin)
            result: Output = implementation.function()
            if result is None:
                continue
            if not isinstance(result, Iterable):
                raise PluginError(f"{origin}: {self._hook} returned {result!r}, expected {self._what}. {origin.remedy}")
            yield origin, result

    def add(self, name: str, contribution: object, origin: PluginOrigin) -> None:
        first = self._givers.get(name)
        if first is not None:
            raise PluginError(
                f"two {self._what} are named {name!r}: one from {first}, one from {origin}. Rename one, or set "
                f"{BLOCK_VARIABLE}={origin.name} to run without the second plugin."
            )
        self._givers[name] = origin
        self.by_name[name] = contribution


def _passed(plugins: Iterable[object]) -> Iterable[object]:
    if isinstance(plugins, (str, Mapping)) or not isinstance(plugins, Iterable):
        raise PluginError(f"plugins={plugins!r}: expected a list of plugin objects, like plugins=[MyPlugin()].")
    return plugins


def _blaming(function: Callable[..., Output], origin: PluginOrigin, hook: str) -> Callable[..., Output]:
    """An implementation of a hook whose errors name its plugin, but for those of denoisers that it runs."""
    keeps_errors = not hook.startswith(_AT_LOADING)

    @functools.wraps(function)
    def call(*arguments: object) -> Output:
        try:
            return function(*arguments)
        except BaseException as error:
            if not any(isinstance(one, DenoiserCall) and one.raised is error for one in arguments):
                origin.blame(error, f"fails in {hook}", keeps_errors)
            raise

    return call


def _check_hooks(plugin: object, origin: PluginOrigin, manager: FlowblendPluginManager) -> None:
    """Each implementation has a hook of its name and asks only for arguments that hook has."""
    hooks = {name: inspect.signature(spec) for name, spec in vars(hookspecs).items() if name.startswith(HOOK_PREFIX)}
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is None:
            if name in hooks and not _is_hookspec(plugin, name):
                raise PluginError(
                    f"{origin}: {name} is not marked as an implementation, so it would never be called. Decorate it "
                    "with flowblend_plugins.hookimpl."
                )
            continue
        hook = options["specname"] or name
        if hook not in hooks:
            close = difflib.get_close_matches(hook, hooks, n=1, cutoff=0.0)
            raise PluginError(f"{origin} implements {hook}, which is no hook. Did you mean {close[0]}? {origin.remedy}")
        asked = _argument_names(getattr(plugin, name))
        unknown = [argument for argument in asked if argument not in hooks[hook].parameters]
        if unknown:
            has = ", ".join(hooks[hook].parameters) or "none"
            raise PluginError(
                f"{origin}: {hook} asks for {', '.join(unknown)}, but its arguments are: {has}. {origin.remedy}"
            )


def _is_hookspec(plugin: object, name: str) -> bool:
    return getattr(plugin, name) is getattr(hookspecs, name)


def _argument_names(function: Callable[..., object]) -> list[str]:
    """Required arguments; pluggy passes nothing to those with a default."""
    empty = inspect.Parameter.empty
    return [name for name, argument in inspect.signature(function).parameters.items() if argument.default is empty]


def _adapter_problem(adapter: object) -> str | None:
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        return "it is no subclass of flowblend_plugins.Adapter"
    parameters = getattr(adapter, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        return "it is no frozen dataclass"
    if not isinstance(getattr(adapter, "name", None), str) or not adapter.name.isidentifier():
        return "its name is no Python identifier"
    if not isinstance(getattr(adapter, "traits", None), AdapterTraits):
        return "its traits are no AdapterTraits"
    if problem := _types_problem(adapter):
        return problem
    if inspect.isabstract(adapter):
        return f"it does not implement {', '.join(sorted(adapter.__abstractmethods__))}"
    return None


@functools.lru_cache(maxsize=256)  # every blend makes a manager, and this is most of the time it takes
def _types_problem(adapter: type[Adapter]) -> str | None:
    try:
        typing.get_type_hints(adapter)
    except Exception as error:
        return f"the types of its options cannot be read ({_cause(error)}); import them outside TYPE_CHECKING"
    return None


def _free_name(manager: FlowblendPluginManager, plugin: object) -> str:
    base = getattr(plugin, "__name__", None) or type(plugin).__name__
    name, number = base, 2
    while name in manager.origins:
        name, number = f"{base}_{number}", number + 1
    return name


def _cause(error: BaseException) -> str:
    """One line: the kind of the error and what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
