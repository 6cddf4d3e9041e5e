"""Classes that take the place of an object's own class for a while, without hiding that class from anybody.

Users and caches patch ``type(pipe)`` and ``type(denoiser)``. Such a patch belongs on the class that the object had
before, where it stays when ours is gone.
"""

from __future__ import annotations

from typing import Any

from ..types import Keywords

_OVERRIDDEN = frozenset({"__call__", "cache_context", "_reset_stateful_cache"})


class _StandIn(type):
    """The class of a stand-in: attributes set on it go to the class below, and methods read off it are that one's.

    Python looks up ``__call__`` of an object, and methods read off an object, without asking this.
    """

    def __getattribute__(cls, name: str) -> Any:
        if name in _OVERRIDDEN:
            return getattr(type.__getattribute__(cls, "__base__"), name)
        return type.__getattribute__(cls, name)

    def __eq__(cls, other: object) -> bool:
        """Equal to the class below, where somebody looks a class up, as ``from_pipe`` does."""
        return other is cls or other is type.__getattribute__(cls, "__base__")

    def __hash__(cls) -> int:
        return hash(type.__getattribute__(cls, "__base__"))

    def __setattr__(cls, name: str, value: object) -> None:
        setattr(type.__getattribute__(cls, "__base__"), name, value)

    def __delattr__(cls, name: str) -> None:
        delattr(type.__getattribute__(cls, "__base__"), name)


def stand_in(base: type, namespace: Keywords) -> type:
    """A subclass of ``base`` that nobody can tell from it by name, with these attributes."""
    own = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    kind = _StandIn if type(base) is type else type(base.__name__, (_StandIn, type(base)), {})
    return kind(base.__name__, (base,), {**own, **namespace})
