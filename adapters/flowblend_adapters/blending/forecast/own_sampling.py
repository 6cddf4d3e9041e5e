"""Measurements with the pipeline's own sampler: its weights, decibels for latents, and times per step."""

from __future__ import annotations

from dataclasses import dataclass

from flowblend_plugins.types import JsonObject, JsonView, KeywordsView

from .sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class OwnSampling:
    """Large-only and a few planned stacks, measured on the calibration's prompts.

    Attributes:
        sampler: the pipeline's own, at the number of steps of its calls.
        growth: squared, the most that an error of the first step grows by (``planning.error_model``).
        psnr_offset_db: PSNR of the videos at an expected squared error of the latents of 1, the median over the
            stacks; a decibel is 10 log10 of a squared error.
        large_step_ms, forecast_step_ms: of one step, with all that the pipeline does in it.
        checked: of each stack: its schedule, the PSNR that was predicted with this offset, and the mean that was
            observed.
    """

    sampler: Sampler
    growth: float
    psnr_offset_db: float
    large_step_ms: float
    forecast_step_ms: float
    checked: tuple[KeywordsView, ...] = ()

    def time_fraction(self, num_large: int, num_steps: int) -> float:
        """Share of large-only's time for ``num_large`` large steps of ``num_steps``, the others forecast."""
        own = num_large * self.large_step_ms + (num_steps - num_large) * self.forecast_step_ms
        return own / (self.sampler.num_steps * self.large_step_ms)

    def to_json(self) -> JsonObject:
        """The JSON object that :meth:`from_json` reads."""
        return {
            "sampler": self.sampler.to_json(),
            "growth": self.growth,
            "psnr_offset_db": round(self.psnr_offset_db, 3),
            "large_step_ms": round(self.large_step_ms, 4),
            "forecast_step_ms": round(self.forecast_step_ms, 4),
            "checked": [dict(one) for one in self.checked],
        }

    @classmethod
    def from_json(cls, data: JsonView) -> OwnSampling:
        """Raises ``KeyError``, ``TypeError`` or ``ValueError`` where the data are none."""
        return cls(
            sampler=Sampler.from_json(data["sampler"]),
            growth=float(data["growth"]),
            psnr_offset_db=float(data["psnr_offset_db"]),
            large_step_ms=float(data["large_step_ms"]),
            forecast_step_ms=float(data["forecast_step_ms"]),
            checked=tuple(data["checked"]),
        )
