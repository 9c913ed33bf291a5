"""The picture of a sweep as SVG.

Written by hand rather than drawn by matplotlib: it appears after every job, so it has to cost
nothing, and each point is a link to its folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from converter.sweeps.sweep import SIZE, Row, formatted, is_number, pareto_front
from converter.sweeps.titles import number_of, scaled, title_of

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 380, 78, 24, 40, 58
Place = tuple[float, float]
Box = tuple[float, float, float, float]
_LETTER = 7.5
"""Pixels that a digit takes at most."""
_BESIDE = (
    (8, -6, "start"),
    (8, 15, "start"),
    (-8, -6, "end"),
    (-8, 15, "end"),
    (0, -10, "middle"),
    (0, 20, "middle"),
    (10, 4, "start"),
    (-10, 4, "end"),
)
"""Places of a label around its point, the first being the usual one."""
MANY = 60
"""With more points than this, only those on the front carry a number: the others would cover it."""
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-size: 14px; font-weight: 600 }
.grid { stroke: #ddd } .axis { stroke: #666 } .front { stroke: #D55E00; fill: none;
stroke-width: 1.5; stroke-dasharray: 5 3 } .point { fill: #0072B2; fill-opacity: .55 }
.best { fill: #D55E00; fill-opacity: 1 }
.hint { fill: #777 } a:hover circle { stroke: #000; stroke-width: 2 }
""".replace("\n", " ")


def draw(rows: Sequence[Row], panels: Sequence[tuple[str, str]]) -> str:
    """An SVG with one scatter plot per (x, y) pair of columns, side by side."""
    parts = [_panel(rows, x, y, index * WIDTH) for index, (x, y) in enumerate(panels)]
    width = WIDTH * len(panels)
    drawn = any(_measured(row, x, y) for row in rows for x, y in panels)
    height = HEIGHT if drawn else 90
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><style>{_STYLE}</style>\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(rows: Sequence[Row], x: str, y: str, offset: int) -> str:
    front = pareto_front(rows, x, y)
    points = [row for row in rows if _measured(row, x, y)]
    lines = [f'<g transform="translate({offset} 0)">']
    name = "Size" if x == SIZE else "Speed"
    lines.append(f'<text class="title" x="{LEFT}" y="22">{name} against quality</text>')
    if not points:
        lines.append(
            f'<text x="{LEFT}" y="52">No job has measured it yet.</text><text x="{LEFT}" y="70">'
            "To measure it: evaluate=standard, benchmark=standard</text></g>"
        )
        return "\n".join(lines)
    hint = f"best is lower {'left' if x == SIZE else 'right'}"
    lines.append(f'<text class="hint" x="{WIDTH - RIGHT}" y="22" text-anchor="end">{hint}</text>')
    across = _Axis([_scaled(row, x) for row in points], LEFT, WIDTH - RIGHT)
    up = _Axis([row[y] for row in points], HEIGHT - BOTTOM, TOP)
    lines += [*_grid(across, up), *_titles(x, y)]
    path = " ".join(f"{across(_scaled(row, x)):.1f},{up(row[y]):.1f}" for row in front)
    lines.append(f'<polyline class="front" points="{path}"/>')
    best = {row["job"] for row in front}
    places = [(across(_scaled(row, x)), up(row[y])) for row in points]
    named = [len(points) <= MANY or row["job"] in best for row in points]
    labels = _labels(
        places, [number_of(row) if name else "" for row, name in zip(points, named, strict=True)]
    )
    for row, place, label in zip(points, places, labels, strict=True):
        lines.append(_point(row, x, y, place, label, row["job"] in best))
    return "\n".join([*lines, "</g>"])


class _Axis:
    """Maps values to pixels with round ticks and some room at both ends."""

    def __init__(self, values: Sequence[float], start: float, stop: float) -> None:
        low, high = min(values), max(values)
        margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        self.low, self.high, self.start, self.stop = low - margin, high + margin, start, stop
        self.low = max(self.low, 0.0) if low >= 0 else self.low

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        raw = (self.high - self.low) / 8
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def _grid(across: _Axis, up: _Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = []
    for tick in across.ticks():
        place = across(tick)
        lines.append(f'<path class="grid" d="M{place:.1f} {TOP}V{bottom}"/>')
        lines.append(
            f'<text x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.6g}</text>'
        )
    for tick in up.ticks():
        place = up(tick)
        lines.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{right}"/>')
        lines.append(
            f'<text x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        )
    lines.append(f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    return lines


def _titles(x: str, y: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 14}" text-anchor="middle">'
        f"{escape(title_of(x))}</text>",
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(title_of(y))}</text>",
    ]


def _point(row: Row, x: str, y: str, place: Place, label: str, best: bool) -> str:
    tip = f"{row['job']}: {formatted(x, row[x])}, {formatted(y, row[y])}"
    return (
        f'<a href="{escape(row["job"])}/recipe.yaml"><title>{escape(tip)}</title>'
        f'<circle class="point{" best" if best else ""}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" '
        f'r="{6 if best else 5}"/>{label}</a>'
    )


def _labels(places: Sequence[Place], texts: Sequence[str]) -> list[str]:
    """The texts beside their points, each where it covers least of what is there already."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    labels = []
    for (x, y), text in zip(places, texts, strict=True):
        boxes = [_box(x + dx, y + dy, anchor, text) for dx, dy, anchor in _BESIDE]
        costs = [_outside(box) + sum(_overlap(box, other) for other in taken) for box in boxes]
        at = costs.index(min(costs))
        if text:
            taken.append(boxes[at])
        dx, dy, anchor = _BESIDE[at]
        spot = f'x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}"'
        labels.append(f"<text {spot}>{escape(text)}</text>" if text else "")
    return labels


def _box(x: float, y: float, anchor: str, text: str) -> Box:
    width = _LETTER * len(text)
    left = x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
    return left, y - 11, left + width, y + 2


def _overlap(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _outside(box: Box) -> float:
    """How much of a box lies outside of the axes, where ticks and titles are."""
    inside = _overlap(box, (LEFT, TOP, WIDTH, HEIGHT - BOTTOM))
    return 10 * ((box[2] - box[0]) * (box[3] - box[1]) - inside)


def _scaled(row: Row, name: str) -> float:
    return scaled(name, float(row[name]))


def _measured(row: Row, x: str, y: str) -> bool:
    return is_number(row.get(x)) and is_number(row.get(y))
