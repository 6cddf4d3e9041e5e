"""A divergence curve as text, for the terminal."""

from __future__ import annotations

from .curve import DivergenceCurve

_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def plot_as_text(curve: DivergenceCurve) -> str:
    """A bar for every step: the relative l2 distance of the branch the sampler acts on, with its cosine beside it."""
    name = curve.deciding_branch
    branch = curve.branches[name]
    highest = max(one.mean for one in branch.relative_l2) or 1.0
    lines = [f"velocity divergence ({name}), mean ± deviation over {len(curve.setting.prompts)} prompts"]
    lines.append(f"{'step':>4} {'sigma':>6}  {'relative l2':<15} {'cosine':<7}")
    for index, (l2, cosine) in enumerate(zip(branch.relative_l2, branch.cosine, strict=True)):
        sigma = curve.sigmas[index]
        where = f"{index + 1:>4} {'' if sigma is None else f'{sigma:.3f}':>6}"
        lines.append(f"{where}  {l2.mean:.4f} ± {l2.deviation:.4f} {cosine.mean:>7.4f}  {_bar(l2.mean / highest)}")
    return "\n".join(lines)


def _bar(fraction: float) -> str:
    eighths = round(fraction * _WIDTH * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
