"""On which denoiser something was measured, as files of measurements say it: its class and its diffusers config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def config_facts(denoiser: Any) -> dict[str, Any]:
    """The config of a denoiser as JSON gives it back, without what diffusers adds (paths, versions)."""
    plain = {key: value for key, value in dict(denoiser.config).items() if not key.startswith("_")}
    return json.loads(json.dumps(plain, default=str))


def differences(class_name: str, config: Mapping[str, Any], denoiser: Any) -> list[str]:
    """In what the denoiser of this class and config differs from the given one, in words."""
    if type(denoiser).__name__ != class_name:
        return [f"class {class_name}, not {type(denoiser).__name__}"]
    there = config_facts(denoiser)
    keys = sorted(config.keys() | there.keys())
    return [f"{k}={config.get(k)!r}, not {there.get(k)!r}" for k in keys if config.get(k) != there.get(k)]
