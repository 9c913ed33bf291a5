"""The picture of a sweep as SVG, and the page around it.

Written by hand rather than drawn by matplotlib: it appears after every job, so it has to cost
nothing, and each point is a link to its folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from converter.sweeps.sweep import DONE, SIZE, Row, formatted, front_marks, pareto_front

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 380, 78, 24, 40, 58
_TITLES = {SIZE: "size, MB", "evaluate.mean_kld": "mean KL divergence, nats per token"}
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-size: 14px; font-weight: 600 }
.grid { stroke: #ddd } .axis { stroke: #666 } .front { stroke: #D55E00; fill: none;
stroke-width: 1.5; stroke-dasharray: 5 3 } .point { fill: #0072B2; fill-opacity: .55 }
.best { fill: #D55E00; fill-opacity: 1 } a:hover circle { stroke: #000; stroke-width: 2 }
""".replace("\n", " ")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 15px system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }}
td {{ white-space: nowrap }} .error {{ white-space: normal; min-width: 24rem; color: #a00 }}
tr.best {{ background: #fff3ea }} svg {{ max-width: 100%; height: auto }}
</style></head><body>
<h1>{title}</h1>
<p>{count} of {total} jobs done. Points carry the job's number. Orange: no
other job is better in both directions at once.</p>
{picture}
<table><thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table>
<p>All measured columns: <a href="summary.csv">summary.csv</a>.
Choose one: <code>convert pick {title} --max-size 1GB --max-kld 0.1</code></p>
</body></html>
"""


def draw(rows: Sequence[Row], panels: Sequence[tuple[str, str]]) -> str:
    """An SVG with one scatter plot per (x, y) pair of columns, side by side."""
    parts = [_panel(rows, x, y, index * WIDTH) for index, (x, y) in enumerate(panels)]
    width = WIDTH * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'height="{HEIGHT}"><style>{_STYLE}</style>\n'
        f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def page(title: str, rows: Sequence[Row], names: Sequence[str], picture: str) -> str:
    """The HTML page: picture and table, every job linked to its folder and recipe."""
    marks = front_marks(rows, [(SIZE, "evaluate.mean_kld")])
    body = "\n".join(_table_row(row, names, row["job"] in marks) for row in rows)
    return _PAGE.format(
        title=escape(title),
        count=sum(row["status"] == DONE for row in rows),
        total=len(rows),
        picture=picture,
        head="".join(f"<th>{escape(name)}</th>" for name in [*names, "recipe"]),
        body=body,
    )


def _table_row(row: Row, names: Sequence[str], best: bool) -> str:
    cells = []
    for name in names:
        text = escape(formatted(name, row.get(name)))
        if name == "job" and row["status"] == DONE:
            text = f'<a href="{text}/">{text}</a>'
        cells.append(f'<td class="error">{text}</td>' if name == "error" else f"<td>{text}</td>")
    done = row["status"] == DONE
    link = f'<a href="{escape(row["job"])}/recipe.yaml">recipe.yaml</a>' if done else ""
    return f"<tr{' class=best' if best else ''}>{''.join(cells)}<td>{link}</td></tr>"


def _panel(rows: Sequence[Row], x: str, y: str, offset: int) -> str:
    front = pareto_front(rows, x, y)
    points = [row for row in rows if _measured(row, x, y)]
    lines = [f'<g transform="translate({offset} 0)">']
    name = "Size" if x == SIZE else "Speed"
    lines.append(f'<text class="title" x="{LEFT}" y="22">{name} against quality</text>')
    if not points:
        lines.append(
            f'<text x="{LEFT}" y="{HEIGHT / 2}">No job has measured {escape(y)} yet: '
            "sweep with evaluate=standard.</text></g>"
        )
        return "\n".join(lines)
    across = _Axis([_scaled(row, x) for row in points], LEFT, WIDTH - RIGHT)
    up = _Axis([row[y] for row in points], HEIGHT - BOTTOM, TOP)
    lines += [*_grid(across, up), *_titles(x, y)]
    path = " ".join(f"{across(_scaled(row, x)):.1f},{up(row[y]):.1f}" for row in front)
    lines.append(f'<polyline class="front" points="{path}"/>')
    best = {row["job"] for row in front}
    lines += [_point(row, x, y, across, up, row["job"] in best) for row in points]
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
    across = _TITLES.get(x, x.replace(".", ": ").replace("_", " "))
    return [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 14}" text-anchor="middle">'
        f"{escape(across)}</text>",
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(_TITLES.get(y, y))}</text>",
    ]


def _point(row: Row, x: str, y: str, across: _Axis, up: _Axis, best: bool) -> str:
    place_x, place_y = across(_scaled(row, x)), up(row[y])
    # The job's number: whole labels would cover each other; the table has the rest.
    number = escape(row["job"].partition("-")[0])
    label = f'<text x="{place_x + 8:.1f}" y="{place_y - 6:.1f}">{number}</text>'
    tip = f"{row['job']}: {formatted(x, row[x])}, {formatted(y, row[y])}"
    return (
        f'<a href="{escape(row["job"])}/recipe.yaml"><title>{escape(tip)}</title>'
        f'<circle class="point{" best" if best else ""}" cx="{place_x:.1f}" cy="{place_y:.1f}" '
        f'r="{6 if best else 5}"/>{label}</a>'
    )


def _scaled(row: Row, name: str) -> float:
    return float(row[name]) / 1e6 if name == SIZE else float(row[name])


def _measured(row: Row, x: str, y: str) -> bool:
    return isinstance(row.get(x), (int, float)) and isinstance(row.get(y), (int, float))
