"""Optional packages: which extra of this distribution brings each one, read from its own metadata."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re

DISTRIBUTION = "flowblend-plugins"

_MODULES = {"scikit-image": "skimage", "deepcache": "DeepCache"}  # where the module is not named after its package
_COLLECTIONS = {"all", "test", "dev"}  # these repeat what other extras bring


@functools.cache
def extra_by_package() -> dict[str, str]:
    """Optional package to the smallest extra that brings it, as in ``{"peft": "lora"}``; names as metadata spells them.

    Empty where nothing is installed: a source tree on ``sys.path`` has no metadata.
    """
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    packages: dict[str, list[str]] = {}
    for requirement in requirements:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if package and extra and extra[1] not in _COLLECTIONS and package[0] != DISTRIBUTION:
            packages.setdefault(extra[1], []).append(_normalised(package[0]))
    found: dict[str, str] = {}
    for extra_name in sorted(packages, key=lambda name: len(packages[name]), reverse=True):
        found |= dict.fromkeys(packages[extra_name], extra_name)
    return found


def is_installed(package: str) -> bool:
    """Whether the module of a package can be found; nothing is imported."""
    return importlib.util.find_spec(_module_of(package)) is not None


def how_to_install(package: str) -> str:
    """The command that brings an optional package, as in ``Run: pip install "flowblend-plugins[lora]"``."""
    extra = extra_by_package().get(_normalised(package))
    return f"Run: pip install {package}" if extra is None else f'Run: pip install "{DISTRIBUTION}[{extra}]"'


def missing_module(error: ModuleNotFoundError) -> str | None:
    """Message for a user whose installation lacks an optional package; ``None`` for any other module."""
    module = (error.name or "").split(".")[0]
    for package in extra_by_package():
        if module == _module_of(package):
            return f"this needs the package {package}, which is not installed. {how_to_install(package)}"
    return None


def _normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _module_of(package: str) -> str:
    name = _normalised(package)
    return _MODULES.get(name, name.replace("-", "_"))
