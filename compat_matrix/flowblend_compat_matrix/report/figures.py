"""Numbers as people read them; what was not measured is a dash."""

from __future__ import annotations

NOT_MEASURED = "–"


def figure(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def times(value: float | None) -> str:
    """A ratio with two decimals."""
    return NOT_MEASURED if value is None else f"{value:.2f}×"


def percent(value: float | None) -> str:
    """A fraction in per cent."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def between(values: list[float] | None, digits: int = 2) -> str:
    """A range; one that was seen once is none."""
    if values is None or values[0] == values[1]:
        return NOT_MEASURED
    return f"{values[0]:.{digits}f}–{values[1]:.{digits}f}"


def plus_minus(mean: float | None, std: float | None, digits: int = 2) -> str:
    """A mean with its standard deviation."""
    return figure(mean, digits) if std is None else f"{figure(mean, digits)} ± {figure(std, digits)}"


def flops(value: float | None) -> str:
    """A count of floating-point operations."""
    if value is None:
        return NOT_MEASURED
    unit, scale = next(((u, s) for u, s in (("TFLOPs", 1e12), ("GFLOPs", 1e9)) if value >= s), ("MFLOPs", 1e6))
    return f"{value / scale:.3g} {unit}"
