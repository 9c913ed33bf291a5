"""Pictures of an evaluation: divergences, errors of the linears, folders side by side.

Each function writes one file, PNG or SVG by the path's suffix, through matplotlib's Agg and SVG
backends without pyplot, so that nothing global is touched and no display is needed. The same
data gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.quantization.linear_error import LinearError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SMALLEST_KLD = 1e-7


@dataclass(frozen=True)
class Panel:
    """One figure of each folder: a bar chart's `title` with its unit, `values` and `errors`.

    A value of None is shown as "not measured". `digits` are those after the point.
    """

    title: str
    values: Sequence[float | None]
    errors: Sequence[float | None] | None = None
    digits: int = 3


def kld_distribution(path: Path, klds: Mapping[str, NDArray[np.float64]]) -> None:
    """Draw how the tokens' divergences (nats, float64 [n] per folder) are distributed.

    Left: share of tokens per bin of a logarithmic axis; right: share of tokens above a
    divergence, which shows the rare large ones that decide whether a text derails.
    """
    figure = _figure(10.0, 4.2)
    left, right = figure.subplots(1, 2)
    positive = {name: np.maximum(values, _SMALLEST_KLD) for name, values in klds.items()}
    edges = _logarithmic_bins(np.concatenate(list(positive.values())))
    for place, (name, values) in enumerate(positive.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        _draw_histogram(left, values, edges, colour, filled=len(positive) == 1)
        ordered = np.sort(values)
        above = 1.0 - np.arange(len(ordered)) / len(ordered)
        label = f"{name} (mean {klds[name].mean():.4f})"
        right.plot(ordered, 100 * above, color=colour, linewidth=1.6, label=label)
    left.set(xscale="log", xlabel=_KLD_AXIS, ylabel="share of tokens per bin (%)")
    left.set_title("dotted: median, dashed: mean", fontsize=9, loc="right", color="#555555")
    right.set(xscale="log", yscale="log", xlabel=_KLD_AXIS, ylabel="share of tokens above (%)")
    right.set_ylim(top=150)
    right.yaxis.set_major_formatter("{x:g}")
    for axes in (left, right):
        axes.set_xlim(edges[0], edges[-1])
        _grid(axes, "both")
    _legend_below(figure, right)
    _save(figure, path)


def layer_errors(path: Path, errors: Sequence[LinearError]) -> None:
    """Draw the error of each linear over the layers: full lines after, faint ones before.

    Raises ValueError for an empty `errors`.
    """
    if not errors:
        raise ValueError("no errors to draw")
    layers = [error.layer for error in errors if error.layer is not None]
    last = max(layers, default=-1)
    figure = _figure(10.0, 4.8)
    axes = figure.subplots()
    for place, linear in enumerate(dict.fromkeys(error.linear for error in errors)):
        rows = [error for error in errors if error.linear == linear]
        # What stands outside the layers gets a place of its own behind the last one.
        x = [last + 2 if row.layer is None else row.layer for row in rows]
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        before, after = [row.before for row in rows], [row.after for row in rows]
        axes.plot(x, before, color=colour, marker=marker, markersize=4.5, lw=1, alpha=0.3)
        axes.plot(x, after, color=colour, marker=marker, markersize=4.5, lw=1.6, label=linear)
    outside = [error.linear for error in errors if error.layer is None]
    _layer_axis(axes, last, outside)
    _grid(axes, "both")
    axes.set(yscale="log", ylabel="relative output error, ‖ΔW·x‖² / ‖W·x‖² (%)")
    _percent_axis(axes)
    axes.set_title("faint: round to nearest, full: as written", fontsize=9, color="#555555")
    _legend_below(figure, axes)
    _save(figure, path)


def compare_folders(path: Path, names: Sequence[str], panels: Sequence[Panel]) -> None:
    """Draw one row of bars per folder and one column per panel, in the order given.

    Raises ValueError when a panel has another number of values than there are `names`.
    """
    for panel in panels:
        if len(panel.values) != len(names):
            raise ValueError(f"{panel.title}: {len(panel.values)} values for {len(names)} folders")
    label_width = 0.085 * max(len(name) for name in names)
    figure = _figure(label_width + 3.2 * len(panels), 1.1 + 0.38 * len(names))
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for place, (axes, panel) in enumerate(zip(columns, panels, strict=True)):
        _draw_bars(axes, panel, _COLOURS[place % len(_COLOURS)])
    columns[0].set_yticks(range(len(names)), names)
    columns[0].set_ylim(len(names) - 0.5, -0.5)
    _save(figure, path)


_KLD_AXIS = "KL divergence of a token (nats)"


def _figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(axes: Axes, which: Literal["both", "x"]) -> None:
    axes.grid(True, axis=which, alpha=0.25, linewidth=0.6)


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path.name}: a picture is .png or .svg")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    # A date or a random id would make the same picture differ from run to run.
    metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "convert"}):
        figure.savefig(path, metadata=metadata)


def _logarithmic_bins(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.quantile(values, 0.001), values.max()
    return np.geomspace(low / 1.5, max(high, 2 * low) * 1.5, 61)


def _draw_histogram(
    axes: Axes,
    values: NDArray[np.float64],
    edges: NDArray[np.float64],
    colour: str,
    *,
    filled: bool,
) -> None:
    counts, _ = np.histogram(values, edges)
    alpha = 0.55 if filled else 1.0
    share = 100 * counts / len(values)
    axes.stairs(share, edges, fill=filled, color=colour, alpha=alpha, linewidth=1.5)
    axes.axvline(float(np.median(values)), color=colour, linestyle=":", linewidth=1.2)
    axes.axvline(float(values.mean()), color=colour, linestyle="--", linewidth=1.2)


def _percent_axis(axes: Axes) -> None:
    """Label a logarithmic y axis at 1, 2 and 5 times the powers of ten, in percent."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _layer_axis(axes: Axes, last: int, outside: Sequence[str]) -> None:
    step = max(1, -(-(last + 1) // 16))
    ticks = list(range(0, last + 1, step))
    labels = [str(tick) for tick in ticks]
    if outside:
        ticks.append(last + 2)
        labels.append("\n".join(dict.fromkeys(outside)))
        axes.axvline(last + 1, color="#999999", linewidth=0.8)
    axes.set_xticks(ticks, labels)
    axes.set_xlabel("layer")


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    # A character takes about 0.085 inch, a line's sample and the gaps around it 0.7 inch.
    widest = 0.085 * max(len(label) for label in labels) + 0.7
    columns = max(1, min(len(labels), int(figure.get_figwidth() / widest)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _draw_bars(axes: Axes, panel: Panel, colour: str) -> None:
    values = np.array([0.0 if value is None else value for value in panel.values])
    errors = np.array([error or 0.0 for error in panel.errors or [0.0] * len(values)])
    rows = np.arange(len(values))
    axes.barh(rows, values, height=0.62, color=colour, alpha=0.85)
    shown = errors > 0
    axes.errorbar(
        values[shown], rows[shown], xerr=errors[shown], fmt="none", ecolor="black", capsize=3
    )
    span = float((values + errors).max()) or 1.0
    for row, value in enumerate(panel.values):
        text = "not measured" if value is None else f"{value:,.{panel.digits}f}"
        edge = values[row] + errors[row] + 0.02 * span
        axes.text(edge, row, text, va="center", fontsize=8.5)
    # Room for the figures to the right of the longest bar.
    axes.set_xlim(0, 1.32 * span)
    axes.set_title(panel.title, fontsize=10)
    axes.tick_params(axis="y", length=0)
    _grid(axes, "x")
