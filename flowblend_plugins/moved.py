"""Old names of modules that have moved: importing one warns, and gives the module at its new place."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType


def redirect(package: str, moved: Mapping[str, str]) -> None:
    """Let old module names of a package lead to new ones.

    Args:
        package: name of the package that the old modules were in.
        moved: old name within the package to the full new name.
    """
    sys.meta_path.append(_MovedModules({f"{package}.{old}": new for old, new in moved.items()}))


class _MovedModules(MetaPathFinder, Loader):
    """Comes last on ``sys.meta_path``, so it costs nothing while every module is found where it is."""

    def __init__(self, new_names: Mapping[str, str]) -> None:
        self._new_names = new_names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self._new_names else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = self._new_names[spec.name]
        warnings.warn(f"module {spec.name} has moved: import {new} instead.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back, which the import system has just replaced."""
        spec = module.__spec__
        if spec is not None and isinstance(spec.loader_state, ModuleSpec):
            module.__spec__ = spec.loader_state

    def get_code(self, fullname: str) -> CodeType:
        """Code for ``python -m old.name``."""
        new = self._new_names[fullname]
        warnings.warn(f"module {fullname} has moved: run python -m {new} instead.", DeprecationWarning, stacklevel=2)
        return compile(
            f"import runpy; runpy.run_module({new!r}, run_name='__main__', alter_sys=True)", fullname, "exec"
        )
