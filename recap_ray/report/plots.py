"""Figures of a fit and of an evaluation: numbers in, a matplotlib Figure out.

They are saved as SVG: sharp at any size, small, with text that can be searched and read aloud. pyplot is never
imported: its figures and backend are global to the process. Colours are Okabe and Ito's, which the colour-blind can
distinguish; everything shown by colour is also shown by shape or position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recap_ray.alignment import METHODS, GapProjection, Recipe
from recap_ray.alignment.solvers import CENTERS, RIDGES
from recap_ray.console import say
from recap_ray.errors import MissingExtra
from recap_ray.report.histogram import SCORE_STEPS, Counts, draw
from recap_ray.runs.run import output_file
from recap_ray.storage.paths import commit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.25  # inches: 600 pixels of a browser
BLUE, ORANGE, GREEN, PURPLE, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676", "#000000"
COLOUR_OF = dict(zip(CENTERS, (BLUE, PURPLE, GREEN, ORANGE)))
MARKER_OF = {False: "o", True: "^"}  # standardised or not
DASHES = dict(zip(RIDGES, ("-", ":")))
FILL = dict(zip(RIDGES, (None, "white")))

# The metrics whose value is the mean over images, in the order they are drawn.
DISTRIBUTIONS = ("CLIP-S", "RefCLIP-S", "aCLIP-S", "RefaCLIP-S", "CIDEr", "ROUGE-L", "SPICE")


def require_matplotlib() -> None:
    """Raise MissingExtra if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "plots", "drawing figures for --plots")


def open_plots(plots: str) -> Path:
    """Create and return the folder of --plots; raises UserError if it is not writable."""
    return output_file(f"{plots.rstrip('/')}/plots.svg", "--plots").parent


def save_plots(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write each figure to NAME.svg, the same figure to the same bytes, and print the paths."""
    for name, figure in figures.items():
        commit(folder / f"{name}.svg", partial(_save, figure))
    say(f"plots: {', '.join(str(folder / f'{name}.svg') for name in figures)}")


def retrieval_figure(candidates: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> Figure:
    """Draw the mean reciprocal rank of held-out images by strength of the ridges, beside the methods without strength;
    the chosen recipe is marked with its standard error. Recipes that were not tried on all images are left out.

    The arguments are the entries `held_out_retrieval`, at least one, and `recipe` of alignment.json.
    """
    most = max(candidate["images"] for candidate in candidates)
    candidates = [candidate for candidate in candidates if candidate["images"] == most]  # others left the race
    ridges = [candidate for candidate in candidates if candidate["method"] in RIDGES]
    others = [candidate for candidate in candidates if candidate["method"] not in RIDGES]
    methods = [name for name in METHODS if any(candidate["method"] == name for candidate in others)]
    widths = [3.0, 0.6 + 0.4 * len(methods)] if ridges else [1.0]
    figure = _figure(4.8)
    axes: list[Axes] = list(figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0])
    if ridges:
        _draw_strengths(axes[0], ridges)
    _draw_methods(axes[-1], others, methods)
    axes[0].set_ylabel("MRR, mean of 1 / rank (held-out images)")
    marked = next(c for c in candidates if all(c[name] == value for name, value in chosen.items()))
    ax = axes[0] if marked in ridges else axes[-1]
    x = marked["strength"] if marked in ridges else _x_position(marked, methods)
    error = marked["MRR_standard_error"]
    ax.errorbar(x, marked["MRR"], error, fmt="none", ecolor=BLACK, capsize=4, zorder=4, label="_standard error")
    ax.plot(x, marked["MRR"], "o", ms=13, mfc="none", mec=BLACK, mew=1.5, zorder=5, label="chosen")
    figure.suptitle(f"Chosen: {Recipe(**chosen)}\nMRR {marked['MRR']:.3f} ± {error:.3f}{_without(candidates, marked)}")
    _legend(figure, [c["method"] for c in ridges])
    return figure


def gap_figure(projections: Sequence[GapProjection], gap: Mapping[str, float]) -> Figure:
    """Draw images and captions of the same pairs before and after the map, each on their own principal components.

    `gap`, before and after, is the distance of the means in all dimensions: `modality_gap` of alignment.json.
    """
    figure = _figure(4.3, "compressed")  # constrained, for axes of equal scales
    axes = figure.subplots(1, 2)
    for ax, when, projection in zip(axes, ("before", "after"), projections, strict=True):
        images, captions = projection.images, projection.captions
        ax.scatter(*images.T, s=7, c=BLUE, marker="o", alpha=0.5, lw=0, label="images")
        ax.scatter(*captions.T, s=9, c=ORANGE, marker="^", alpha=0.5, lw=0, label="captions")
        means = np.stack([images.mean(0), captions.mean(0)])
        ax.plot(*means.T, "-", c=BLACK, lw=2, label="means", zorder=3)
        for mean, colour, marker in zip(means, (BLUE, ORANGE), ("o", "^")):
            ax.plot(*mean, marker, c=colour, ms=11, mec=BLACK, mew=1.5, zorder=4)
        ax.set_title(f"{when} the map", fontsize="medium")
        ax.set_aspect("equal")
        ax.set_xlabel(f"principal component 1 ({projection.variance[0]:.0%} of variance)", fontsize="small")
        ax.set_ylabel(f"principal component 2 ({projection.variance[1]:.0%} of variance)", fontsize="small")
    figure.suptitle(
        f"Modality gap: {gap['before']:.3f} before the map, {gap['after']:.3f} after\n"
        "(distance of the means in all dimensions)"
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, markerscale=2)
    return figure


def scores_figure(
    scores: Mapping[str, np.ndarray], standard_errors: Mapping[str, float | None], of: str = "images"
) -> Figure:
    """Draw a histogram of each metric's finite values, at least one for each image (or the unit `of`), with the mean
    marked, and its standard error if known."""
    rows = -(-len(scores) // 2)
    figure = _figure(0.5 + 2.1 * rows)
    all_axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for ax, (name, values) in zip(all_axes, scores.items()):
        mean, error = float(values.mean()), standard_errors.get(name)
        title = f"{name}: mean {mean:.3f}" + (f" ± {error:.3f}" if error is not None else "")
        counts = Counts(SCORE_STEPS, values)
        if histogram := draw(name, title, "", counts, counts):
            edges = [*(bar.low for bar in histogram.bars), histogram.bars[-1].high]
            ax.stairs([bar.count for bar in histogram.bars], edges, fill=True, color=BLUE, alpha=0.7)
        ax.axvline(mean, c=BLACK, lw=1.5, ls="--", label="mean")
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel(f"{name} (no unit)")
    for ax in all_axes[::2]:
        ax.set_ylabel(of)
    for ax in all_axes[len(scores) :]:
        ax.remove()
    figure.suptitle(f"Scores of {max(map(len, scores.values())):,} {of}; dashed: the mean")
    return figure


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "recap-ray"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _figure(height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout=layout)


def _draw_strengths(ax: Axes, ridges: Sequence[Mapping[str, Any]]) -> None:
    for method, center, standardise in dict.fromkeys(map(_series, ridges)):
        series = [c for c in ridges if _series(c) == (method, center, standardise)]
        colour = COLOUR_OF[center]
        style: dict[str, Any] = {"c": colour, "mfc": FILL[method] or colour, "ls": DASHES[method]}
        label = f"{method}, {center:g}{', standardised' if standardise else ''}"
        x, y = [c["strength"] for c in series], [c["MRR"] for c in series]
        ax.plot(x, y, marker=MARKER_OF[standardise], ms=6, label=label, **style)
    ax.set_xscale("log")
    ax.set_title("by strength", fontsize="medium")
    ax.set_xlabel("strength: λ / mean variance of F")


def _draw_methods(ax: Axes, others: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    for candidate in others:
        colour, marker = COLOUR_OF[candidate["center"]], MARKER_OF[candidate["standardise"]]
        x = _x_position(candidate, methods)
        ax.plot(x, candidate["MRR"], c=colour, marker=marker, ms=6, ls="none", label=candidate["method"])
    names = ["no map" if name == "identity" else name.replace("-to-", "\nto ") for name in methods]
    ax.set_xticks(range(len(methods)), names, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.6, len(methods) - 0.4)
    ax.set_title("without strength", fontsize="medium")


def _x_position(candidate: Mapping[str, Any], methods: Sequence[str]) -> float:
    """Return the x position of a candidate without strength: those of a method side by side."""
    variants = METHODS[candidate["method"]]
    offset = variants.index((candidate["center"], candidate["standardise"])) - (len(variants) - 1) / 2
    return methods.index(candidate["method"]) + 0.12 * offset


def _series(candidate: Mapping[str, Any]) -> tuple[str, float, bool]:
    return candidate["method"], candidate["center"], candidate["standardise"]


def _without(candidates: Sequence[Mapping[str, Any]], marked: Mapping[str, Any]) -> str:
    no_map = next((c["MRR"] for c in candidates if c["method"] == "identity" and c is not marked), None)
    return "" if no_map is None else f", without a map {no_map:.3f}"


def _legend(figure: Figure, ridges: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], c=GREY, ls=DASHES[name], marker="o", mfc=FILL[name] or GREY, label=name)
        for name in RIDGES
        if name in ridges
    ]
    colours = [Line2D([], [], c=c, marker="s", ls="none", label=f"center {a:g}") for a, c in COLOUR_OF.items()]
    marker = [Line2D([], [], c=GREY, marker=MARKER_OF[True], ls="none", label="standardised")]
    handles = [*lines, *colours, *marker]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
