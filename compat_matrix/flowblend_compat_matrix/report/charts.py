"""Geometry of the report's charts: numbers in, coordinates in a fixed view box out. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Margins(NamedTuple):
    """Margins around every plot, in its units."""

    left: float
    right: float
    top: float
    bottom: float


WIDTH = 460.0
SCATTER_HEIGHT, SQUARE_HEIGHT, LINES_HEIGHT = 440.0, 400.0, 200.0
MARGINS = Margins(left=46.0, right=14.0, top=16.0, bottom=40.0)
_BAND = 36.0
"""Height above the plot, where values beyond every scale (an infinite PSNR) stand in a strip."""
_FACTORS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Of a power of ten: round ratios, the more closely spaced ones first."""
_MAX_TICKS = 8


class Tick(NamedTuple):
    position: float
    label: str


class Box(NamedTuple):
    """A label's place: the anchor point and how the text runs from it."""

    x: float
    y: float
    anchor: str


@dataclass
class Point:
    """One cell: where it is drawn, how it is called, and its number on the page."""

    label: str
    kind: str
    title: str
    x: float
    y: float
    low: float
    high: float
    text: Box = field(default_factory=lambda: Box(0.0, 0.0, "start"))
    cell: int | None = None


@dataclass
class Chart:
    """A view box ``width`` x ``height`` with axes; ``left`` to ``right`` and ``top`` to ``bottom`` is the plot."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    height: float
    top: float = MARGINS.top
    left: float = MARGINS.left
    right: float = WIDTH - MARGINS.right
    width: float = WIDTH

    @property
    def bottom(self) -> float:
        return self.height - MARGINS.bottom


@dataclass
class Scatter(Chart):
    """Chart of speed-up against fidelity. ``band_y`` is the line on which bit-exact cells stand."""

    points: list[Point] = field(default_factory=list)
    front: str = ""
    budget_y: float | None = None
    band_y: float = MARGINS.top + 11.0


class Line(NamedTuple):
    """One curve: ``points`` as SVG's polyline takes them."""

    label: str
    kind: str
    points: str


class Zone(NamedTuple):
    """A stage of the trajectory, behind the curves."""

    label: str
    x: float
    width: float


@dataclass
class LineChart(Chart):
    """A quantity over the steps."""

    lines: list[Line] = field(default_factory=list)
    zones: list[Zone] = field(default_factory=list)


class Marked(NamedTuple):
    """One cell as a scatter shows it; ``fidelity`` is infinite where the cell is bit-exact."""

    label: str
    kind: str
    title: str
    speedup: float
    speedup_range: tuple[float, float]
    fidelity: float
    cell: int | None = None


OFF_FRONT = ("broken", "inert")
"""Verdicts that beat nobody: an inert cell is its baseline again, faster by no more than the noise."""


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the points that no other reaches in both coordinates (larger is better), by falling first coordinate."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def scatter(marked: Sequence[Marked], budget: float | None) -> Scatter:
    """Speed-up over large-only against PSNR to it, with the Pareto front and the quality budget.

    Speed-ups are ratios, so equal factors are equally far apart. Points without a label say who they are when pointed
    at. What is broken is drawn, and is never on the front.
    """
    speeds = [value for one in marked for value in (one.speedup, *one.speedup_range)] + [1.0]
    finite = [one.fidelity for one in marked if math.isfinite(one.fidelity)]
    if budget is not None:
        finite.append(budget)
    x_ticks, x_low, x_high = ratio_ticks(min(speeds), max(speeds))
    y_ticks, y_low, y_high = ticks(min(finite, default=0.0), max(finite, default=1.0), 6)
    plot_top, plot_bottom = MARGINS.top + _BAND, SCATTER_HEIGHT - MARGINS.bottom
    chart = Scatter(
        title="Speed-up against fidelity",
        x_label="speed-up over large-only",
        y_label="PSNR to large-only, dB",
        x_ticks=[Tick(ratio_to_x(tick, x_low, x_high), f"{tick:g}×") for tick in x_ticks],
        y_ticks=[Tick(to_y(tick, y_low, y_high, plot_top, plot_bottom), f"{tick:g}") for tick in y_ticks],
        height=SCATTER_HEIGHT,
        top=plot_top,
    )

    def place(speed: float, fidelity: float) -> tuple[float, float]:
        is_finite = math.isfinite(fidelity)
        y = to_y(fidelity, y_low, y_high, plot_top, plot_bottom) if is_finite else chart.band_y
        return ratio_to_x(speed, x_low, x_high), y

    best = pareto_front((one.speedup, one.fidelity) for one in marked if one.kind not in OFF_FRONT)
    for one in marked:
        x, y = place(one.speedup, one.fidelity)
        low, high = (ratio_to_x(value, x_low, x_high) for value in one.speedup_range)
        chart.points.append(Point(one.label, one.kind, one.title, x, y, low, high, cell=one.cell))
    _place_labels(chart)
    front = [place(*point) for point in best]
    steps = []
    for number, (x, y) in enumerate(front):
        if number:
            steps.append(f"{x:.1f},{front[number - 1][1]:.1f}")
        steps.append(f"{x:.1f},{y:.1f}")
    chart.front = " ".join(steps)
    if budget is not None:
        chart.budget_y = to_y(budget, y_low, y_high, plot_top, plot_bottom)
    return chart


def line_chart(
    title: str, y_label: str, curves: Sequence[tuple[str, str, Sequence[tuple[int, float]]]], boundaries: Sequence[int]
) -> LineChart:
    """Curves over the steps, counted from 1, with the three stages behind them.

    Args:
        title: of the chart.
        y_label: the quantity.
        curves: label, kind (a CSS class), and (step index, value) pairs.
        boundaries: first step of the intermediate and of the late stage, from 0.
    """
    steps = [step for _, _, values in curves for step, _ in values]
    heights = [value for _, _, values in curves for _, value in values]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    y_ticks, y_low, y_high = ticks(min(heights), max(heights), 5)
    x_ticks = [tick for tick in ticks(first + 1, last + 1, 6)[0] if first + 1 <= tick <= last + 1]
    low, high = first + 0.5, last + 1.5
    bottom = LINES_HEIGHT - MARGINS.bottom
    chart = LineChart(
        title=title,
        x_label="step",
        y_label=y_label,
        x_ticks=[Tick(to_x(tick, low, high), f"{tick:g}") for tick in x_ticks if tick == int(tick)],
        y_ticks=[Tick(to_y(tick, y_low, y_high, MARGINS.top, bottom), f"{tick:g}") for tick in y_ticks],
        height=LINES_HEIGHT,
    )
    for label, kind, values in curves:
        points = " ".join(
            f"{to_x(s + 1, low, high):.1f},{to_y(v, y_low, y_high, MARGINS.top, bottom):.1f}" for s, v in values
        )
        chart.lines.append(Line(label, kind, points))
    edges = [low, *(boundary + 0.5 for boundary in boundaries), high]
    for label, start, end in zip(("early", "intermediate", "late"), edges, edges[1:], strict=False):
        start, end = max(start, low), min(end, high)
        if end > start:
            chart.zones.append(Zone(label, to_x(start, low, high), to_x(end, low, high) - to_x(start, low, high)))
    return chart


def to_x(value: float, low: float, high: float) -> float:
    """Place of a value across the plot, whose ends are ``low`` and ``high``."""
    return MARGINS.left + (value - low) / (high - low) * (WIDTH - MARGINS.left - MARGINS.right)


def to_y(value: float, low: float, high: float, top: float, bottom: float) -> float:
    """Place of a value between ``bottom`` and ``top``, larger ones further up."""
    return bottom - (value - low) / (high - low) * (bottom - top)


def ticks(low: float, high: float, count: int) -> tuple[list[float], float, float]:
    """Round numbers that enclose the range, at most about ``count``, and the first and last of them."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = [round(number * step, 12) for number in range(first, last + 1)]
    return ticks, ticks[0], ticks[-1]


def ratio_to_x(value: float, low: float, high: float) -> float:
    """Place of a ratio across the plot, as :func:`to_x`: twice as much is as far anywhere."""
    return to_x(math.log(value), math.log(low), math.log(high))


def ratio_to_y(value: float, low: float, high: float, top: float, bottom: float) -> float:
    """Place of a ratio from the bottom, as :func:`to_y`."""
    return to_y(math.log(value), math.log(low), math.log(high), top, bottom)


def ratio_ticks(low: float, high: float) -> tuple[list[float], float, float]:
    """Round ratios within a range of positive ones, and the ends of an axis with some room on either side."""
    room = max((high / low) ** 0.03, 1.01)
    low, high = low / room, high * room
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for factors in _FACTORS:
        found = [round(factor * power, 12) for power in powers for factor in factors]
        found = [tick for tick in found if low <= tick <= high]
        if 3 <= len(found) <= _MAX_TICKS:
            return found, low, high
    return [tick for tick in ticks(low, high, _MAX_TICKS)[0] if low <= tick <= high], low, high


def _place_labels(chart: Scatter) -> None:
    """Beside each point where there is room: to the right, to the left, above, below."""
    taken: list[tuple[float, float, float, float]] = [(p.x - 6, p.y - 6, p.x + 6, p.y + 6) for p in chart.points]
    for point in (point for point in chart.points if point.label):
        length = 6.6 * len(point.label)
        choices = (
            (Box(point.x + 10, point.y + 4, "start"), point.x + 10),
            (Box(point.x - 10, point.y + 4, "end"), point.x - 10 - length),
            (Box(point.x, point.y - 11, "middle"), point.x - length / 2),
            (Box(point.x, point.y + 19, "middle"), point.x - length / 2),
        )
        boxes = [(box, (left, box.y - 10, left + length, box.y + 3)) for box, left in choices]
        point.text, area = next(
            ((box, area) for box, area in boxes if _is_free(area, taken, chart)),
            boxes[0] if point.x < WIDTH / 2 else boxes[1],
        )
        taken.append(area)


def _is_free(
    area: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]], chart: Chart
) -> bool:
    left, top, right, bottom = area
    if left < chart.left or right > WIDTH or bottom > chart.bottom:
        return False
    return not any(
        left < other_right and other_left < right and top < other_bottom and other_top < bottom
        for other_left, other_top, other_right, other_bottom in taken
    )
