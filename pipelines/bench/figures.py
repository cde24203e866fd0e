"""Distributions of the main metrics on a lab's split: memorised, partly memorised and harmless prompts, by style."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sharpaudit.errors import UserError
from sharpaudit.lab.detectors import Truth, names_colour
from sharpaudit.tables.records import export_file

Values = npt.NDArray[np.float64]
MAIN = ("residual_gap", "noise_gap", "sharpness")
STYLES = {"captions that name a colour": True, "captions that name none": False}
GROUPS = {
    "harmless": ("#9fb4bf", lambda row: row.label == "harmless" and row.never_planted),
    "partly memorised": ("#d99a3d", lambda row: row.label == "partly"),
    "memorised, exact": ("#a4341f", lambda row: (row.kind, row.label) == ("exact", "memorised")),
    "memorised, template": ("#5b2a86", lambda row: (row.kind, row.label) == ("template", "memorised")),
}
"""Colour, and who belongs to it."""
BINS = 30


def distributions(
    truth: Sequence[Truth], values_N: Mapping[str, Values], calibration_C: Mapping[str, Values], path: Path
) -> None:
    """Draw one panel for each of MAIN and each style into `path` (svg, png or pdf by its name).

    Each group's bars add up to one; the dashed line is the calibration score that 1% of harmless prompts exceed.
    Raises UserError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('--figure draws with matplotlib: pip install "sharpaudit[figures]"') from error
    metrics = [metric for metric in MAIN if metric in values_N]
    figure = Figure(figsize=(10, 2.6 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), len(STYLES), squeeze=False, sharex="row", sharey="row")
    for metric, line in zip(metrics, panels, strict=True):
        known = np.maximum(values_N[metric], np.finfo(np.float64).tiny)
        edges = np.geomspace(known.min(), known.max(), BINS + 1)
        # The rounding of the logarithm must not push the extremes out of the outer bins.
        edges[0], edges[-1] = known.min(), known.max()
        for (style, colour), panel in zip(STYLES.items(), line, strict=True):
            for name, (shade, belongs) in GROUPS.items():
                rows = [i for i, row in enumerate(truth) if belongs(row) and names_colour(row.prompt) == colour]  # type: ignore[no-untyped-call]
                if rows:
                    weights = np.full(len(rows), 1 / len(rows))
                    style_of = {"histtype": "stepfilled", "alpha": 0.55, "color": shade}
                    panel.hist(known[rows], edges, weights=weights, label=f"{name} ({len(rows)})", **style_of)
            panel.axvline(np.quantile(calibration_C[metric], 0.99), color="#1c2430", linestyle="--", linewidth=1)
            panel.set(xscale="log", title=f"{metric}, {style}", ylabel="share of the group")
            panel.title.set_size(9)
            if panel.patches:
                panel.legend(fontsize=7)
    drawn = io.BytesIO()
    form = path.suffix.removeprefix(".") or "png"
    figure.savefig(drawn, format=form, metadata={"Date": None} if form == "svg" else None)
    export_file(path, drawn.getvalue())
