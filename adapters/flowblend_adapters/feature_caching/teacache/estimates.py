"""Choice of the polynomial and the threshold for a denoiser."""

from __future__ import annotations

from flowblend_plugins import AdapterError, StackError
from flowblend_plugins.types import Denoiser

from .fits import read_fits, shipped_fits
from .published import MODULATED_INPUT, PROJECTED_TIME, TIME, Estimate, published_for, published_models


def signal_for(denoiser: Denoiser, retention: bool) -> str:
    """Wan has two signals, chosen by retention; LTX has one."""
    if type(denoiser).__name__ == "LTXVideoTransformer3DModel":
        return MODULATED_INPUT
    return PROJECTED_TIME if retention else TIME


def check_coefficients(coefficients: str) -> None:
    """Refuse a name that is neither a published model nor a file of fits. Raises ``AdapterError``."""
    if coefficients in (names := [model.name for model in published_models()]):
        return
    try:
        read_fits(coefficients)
    except AdapterError as error:
        raise AdapterError(f"{error} Or name a published model: {', '.join(names)}.") from error


def estimate_for(letter: str, denoiser: Denoiser, signal: str, coefficients: str | None) -> Estimate:
    """Choose the estimate that was asked for, else the shipped one, else the one published for its size.

    Raises:
        StackError: no coefficients are known for this denoiser, or those of several models could be meant.
    """
    published = published_for(denoiser)
    if coefficients is not None:
        named = [model for model in published_models() if model.name == coefficients]
        chosen = [model for model in published if model in named]
        if chosen:
            return chosen[0].estimates[signal]
        fits = () if named else read_fits(coefficients)
        for fit in fits:
            if fit.signal == signal and fit.is_for(denoiser):
                return fit.estimate
    for fit in shipped_fits():
        if fit.signal == signal and fit.is_for(denoiser):
            return fit.estimate
    config = denoiser.config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    what = f"denoiser {letter} ({type(denoiser).__name__}, {width} wide, {config['num_layers']} layers)"
    if len(published) > 1:
        names = " or ".join(f'coefficients="{model.name}"' for model in published)
        raise StackError(f"'teacache': {what} is one of several published models. Say which: {names}.")
    if not published:
        raise StackError(
            f"'teacache': no coefficients are known for the signal {signal!r} of {what}. Fit them with `flowblend "
            f'calibrate teacache --large ... --small ...` and pass coefficients="FILE", or leave {letter} out with '
            "denoisers=..."
        )
    return published[0].estimates[signal]


def threshold_for(letter: str, estimate: Estimate, threshold: float | str | None) -> float:
    """The one asked for: a number, ``"fast"``, or ``None`` for slow. Raises ``StackError`` where it is not known."""
    if threshold is not None and not isinstance(threshold, str):
        return threshold
    known = estimate.slow if threshold is None else estimate.fast
    if known is None:
        raise StackError(
            f"'teacache': no threshold was published for the model of denoiser {letter}. Give one, such as "
            "threshold=0.2; the larger, the more is reused."
        )
    return known
