"""The caches of ``caches.py``, ready to be enabled."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flowblend_adapters.feature_caching.teacache import estimates
from tests.sharing.caches import CACHES, Cache, known_fits, measured_ratios


@pytest.fixture(autouse=True)
def _tiny_denoisers_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = known_fits()
    monkeypatch.setattr(estimates, "shipped_fits", lambda: fits)


@pytest.fixture(params=CACHES)
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    found = CACHES[request.param]
    if "RATIOS" in found.spec:
        ratios = measured_ratios(tmp_path / "ratios.json")
        found = dataclasses.replace(found, spec=found.spec.replace("RATIOS", ratios))
    return found
