"""Line charts as inline SVG. Colours, weights and fonts come from the page's style sheet (classes ``s0``, ``s1`` …)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]

HEIGHT = 340
WIDE, NARROW = 640, 430
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 44
MOST_POINTS = 150
MOST_MARKERS = 60


@dataclass(frozen=True)
class Series:
    label: str
    points: Sequence[Point]
    style: int
    """Number of the colour, so that a head keeps its colour from chart to chart."""


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str, width: int = WIDE) -> Markup:
    """One chart with axes and grid, without a legend. Empty series are left out; "" if all are empty.

    A series of more than ``MOST_POINTS`` points is drawn as the means of equal runs of its points.
    """
    drawn = [Series(s.label, thin(s.points), s.style) for s in series if s.points]
    if not drawn:
        return Markup("")
    last = max(x for s in drawn for x, _ in s.points)
    heights = [y for s in drawn for _, y in s.points]
    scale = _Scale(ticks(0, last, about=width // 100), ticks(min(heights), max(heights)), last, width)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        *_axes(scale, x_label, y_label),
        *(part for s in drawn for part in _line(scale, s)),
        "</svg>",
    ]
    return Markup("\n".join(parts))


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points: the means of equal runs of neighbours."""
    run = math.ceil(len(points) / most)
    if run <= 1:
        return list(points)
    groups = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below ``low`` to at or above ``high``."""
    span = (high - low) or abs(high) or 1.0
    rough = span / (about - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A tick as text: 12,000 or 0.25, no trailing zeros."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6f}".rstrip("0")


@dataclass(frozen=True)
class _Scale:
    x_ticks: list[float]
    y_ticks: list[float]
    last: float
    width: int

    def x(self, value: float) -> float:
        return round(LEFT + value / self.last * (self.width - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def _axes(scale: _Scale, x_label: str, y_label: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, scale.width - RIGHT
    parts = []
    for tick in scale.y_ticks:
        y = scale.y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{number(tick)}</text>')
    for tick in (tick for tick in scale.x_ticks if tick <= scale.last):
        x = scale.x(tick)
        parts.append(f'<path class="axis" d="M{x} {bottom}v5"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 18}" text-anchor="middle">{number(tick)}</text>')
    turned = f"translate(13 {(TOP + bottom) / 2}) rotate(-90)"
    return [
        *parts,
        f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>',
        f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="label" transform="{turned}" text-anchor="middle">{escape(y_label)}</text>',
    ]


def _line(scale: _Scale, series: Series) -> list[str]:
    spots = [(scale.x(x), scale.y(y)) for x, y in series.points]
    path = "M" + "L".join(f"{x} {y}" for x, y in spots)
    parts = [f'<path class="line s{series.style}" d="{path}"/>']
    if len(spots) <= MOST_MARKERS:
        for (x, y), (step, value) in zip(spots, series.points, strict=True):
            title = escape(f"{series.label}: {value:.3f} at {number(round(step))}")
            parts.append(f'<circle class="dot s{series.style}" cx="{x}" cy="{y}" r="3"><title>{title}</title></circle>')
    return parts
