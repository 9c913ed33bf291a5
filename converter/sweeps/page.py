"""The HTML page of a sweep: what was asked, the picture, and a table to compare jobs in.

One file without anything from elsewhere; the script only sorts, and the page is whole without it.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from converter.sweeps.sweep import (
    DONE,
    FAILED,
    HIGHER_IS_BETTER,
    QUALITY,
    SIZE,
    Row,
    SweepPlan,
    is_number,
    shown_columns,
)
from converter.sweeps.titles import by_weight, number_of, scaled, title_of

_SIGNIFICANT = 4
"""Digits of a column's smallest value; all its cells then have as many decimals."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 15px system-ui, sans-serif; margin: 1.5rem auto; max-width: 90rem; padding: 0 1rem;
color: #222 }} h1 {{ margin: 0 }} svg {{ max-width: 100%; height: auto }}
code {{ background: #f2f2f2; padding: .15rem .35rem; overflow-wrap: anywhere }}
.scroll {{ overflow-x: auto }} table {{ border-collapse: collapse; font-size: .93em }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left }}
th {{ vertical-align: bottom; cursor: pointer; max-width: 7.5rem }} td {{ white-space: nowrap }}
th[aria-sort=ascending]::after {{ content: " ↑" }}
th[aria-sort=descending]::after {{ content: " ↓" }}
.number {{ text-align: right; font-variant-numeric: tabular-nums }}
th:first-child, td:first-child {{ position: sticky; left: 0; background: #fff }}
tbody tr:hover td {{ background: #f5f5f5 }} .best {{ font-weight: 700 }}
.front {{ color: #B34700; font-weight: 600 }} .small {{ font-size: .85em; margin-left: .5rem }}
.error {{ white-space: pre-wrap; overflow-wrap: anywhere; color: #a00; max-width: 50rem }}
</style></head><body>
<h1>{title}</h1>
<p>{state}. Made by <code>{command}</code></p>
{picture}
<p>Points carry the job's number and lead to its recipe. <span class="front">Orange, and the column
front</span>: no other job is better in both directions at once. Bold: the best of its column.
A click on a head sorts.</p>
<div class="scroll"><table><thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>
<p>All measured columns: <a href="summary.csv">summary.csv</a>.
Choose one: <code>convert pick {folder} {limits}</code></p>
<script>
for (const head of document.querySelectorAll("th")) head.onclick = () => {{
  const up = head.ariaSort !== "ascending", body = document.querySelector("tbody");
  for (const other of document.querySelectorAll("th")) other.ariaSort = null;
  head.ariaSort = up ? "ascending" : "descending";
  const value = row => (row.cells[head.cellIndex] || {{dataset: {{}}}}).dataset.value || "";
  const order = (a, b) => a !== "" && b !== ""
    ? (up ? 1 : -1) * (a - b || a.localeCompare(b, "en", {{numeric: true}}))
    : (a === "") - (b === "");
  body.append(...[...body.rows].sort((a, b) => order(value(a), value(b))));
}};
</script>
</body></html>
"""


def page(
    title: str, plan: SweepPlan, rows: Sequence[Row], picture: str, marks: Mapping[str, str]
) -> str:
    """The page; `marks` names the fronts that a job is on."""
    settings = list(dict.fromkeys(key for job in plan.jobs for key in job.settings))
    leave = {"job", "status", "error", *settings}
    measured = [name for name in by_weight(shown_columns(rows, settings)) if name not in leave]
    heads = [_head("job"), _head("front"), *map(_head, settings)]
    table = _Table(settings, measured, rows)
    return _PAGE.format(
        title=escape(title),
        state=escape(_state(rows)),
        command=escape(f"convert -m {shlex.join(plan.words)}"),
        picture=picture,
        head="".join([*heads, *(_head(name, "number") for name in measured)]),
        body="\n".join(table.line(row, marks.get(row["job"], "")) for row in rows),
        folder=escape(shlex.quote(title)),
        limits=escape(_limits(rows)),
    )


class _Table:
    """The table's lines; numbers of a column share their decimals, and its best are known."""

    def __init__(self, settings: Sequence[str], measured: Sequence[str], rows: Sequence[Row]):
        self.settings, self.measured = settings, measured
        numbers = {name: list(_numbers(rows, name)) for name in measured}
        self.decimals = {
            name: _decimals(scaled(name, value) for value in values)
            for name, values in numbers.items()
        }
        self.best = {
            name: (max if HIGHER_IS_BETTER.search(name) else min)(values)
            for name, values in numbers.items()
            if len(set(values)) > 1
        }

    def line(self, row: Row, mark: str) -> str:
        """One job: what it measured, or else why it did not."""
        done, job = row["status"] == DONE, escape(row["job"])
        number = escape(number_of(row))
        links = f'<a href="{job}/">{number}</a><a class="small" href="{job}/recipe.yaml">recipe</a>'
        cells = [
            f'<td title="{job}" data-value="{number}">{links if done else number}</td>',
            f'<td class="front" data-value="{mark}">{mark}</td>',
            *(_cell(str(row.get(name, "")), str(row.get(name, ""))) for name in self.settings),
        ]
        if done:
            cells += [self._number(row, name) for name in self.measured]
        else:
            why = f"{row['status']}: {row['error']}" if row.get("error") else "not run yet"
            cells.append(
                f'<td class="error" colspan="{len(self.measured) or 1}">{escape(why)}</td>'
            )
        return f"<tr>{''.join(cells)}</tr>"

    def _number(self, row: Row, name: str) -> str:
        value = row.get(name)
        if not is_number(value):
            return _cell("" if value is None else str(value), "" if value is None else str(value))
        best = " best" if value == self.best.get(name) else ""
        text = f"{scaled(name, value):.{self.decimals[name]}f}"
        return _cell(text, repr(value), f"number{best}")


def _head(name: str, kind: str = "") -> str:
    """A column's head; hovering says what `pick` and the CSV call it."""
    title = escape(title_of(name))
    return f'<th class="{kind}" title="{escape(name)}">{title}</th>'


def _cell(text: str, value: str, kind: str = "") -> str:
    return f'<td class="{kind}" data-value="{escape(value)}">{escape(text)}</td>'


def _numbers(rows: Iterable[Row], name: str) -> Iterator[float]:
    return (row[name] for row in rows if is_number(row.get(name)))


def _decimals(values: Iterable[float]) -> int:
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if all(size == int(size) for size in sizes):
        return 0
    return min(9, max(0, _SIGNIFICANT - 1 - math.floor(math.log10(min(sizes)))))


def _state(rows: Sequence[Row]) -> str:
    done, failed = (sum(row["status"] == state for row in rows) for state in (DONE, FAILED))
    left = len(rows) - done - failed
    parts = [f"{done} of {len(rows)} jobs done"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{left} not run yet"] if left else []
    return ", ".join(parts)


def _limits(rows: Sequence[Row]) -> str:
    """Options of `pick` that this sweep's better half fits."""
    quality, sizes = list(_numbers(rows, QUALITY)), list(_numbers(rows, SIZE))
    if not quality:
        return "--by size"
    # Rounded up, or the example could find nothing.
    size = math.ceil(statistics.median_high(sizes) / 1e4) / 100
    return f"--max-size {size:g}MB --by kld"
