"""How well each metric tells memorised prompts from harmless ones, with intervals.

Figures at n = 1 are those of audits that differ in their seed alone, each of which fits anew: mean, standard deviation
and worst. Those at n = 4 are of the mean score over the first four. Positives are the prompts labelled memorised,
exact plants and templates apart; negatives are the harmless prompts that were never planted. Neighbours and partly
memorised prompts are in neither, as in the literature; they are positives of groups of their own, and beside stands
what exact plants come to with all of them among the positives, and among the negatives.

Two thresholds stand side by side: that of a true-positive rate at a false-positive rate is read off the negatives
themselves, as in the literature, and its noise is in the interval; p <= .01 is what an audit does, ranks against
calibration prompts, and its intervals are for these calibration prompts: others would move the line (`fpr_interval`).

Shapes: S seeds, N prompts, C calibration prompts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sharpaudit.errors import UserError
from sharpaudit.statistics.conformal import at_most, p_values
from sharpaudit.statistics.detection import Figure, Group, Statistic, auc, figure, tpr_at_fpr

COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "grey")
"""Of the ground in captions of the lab."""
OTHERS = ("partly", "neighbour")
SEVERAL = 4
ALPHA = 0.01
DETECTORS = {"development": "detectors_development.json", "test": "detectors_test.json"}
TOUCHES = "touches.json"
GROUPS = {
    "exact": "exact plants",
    "template": "template plants",
    "partly": "partly memorised prompts",
    "neighbour": "neighbours",
    "others_memorised": "exact plants, with partly memorised prompts and neighbours taken for memorised",
    "others_harmless": "exact plants, with partly memorised prompts and neighbours taken for harmless",
}
"""Who is told from harmless prompts: the first two for all sorts of captions, the others for all captions together."""
CAPTIONS: dict[str, tuple[bool, ...]] = {"all": (True, False), "naming a colour": (True,), "naming none": (False,)}
STATISTICS: dict[str, Statistic] = {
    "auc": auc,
    "tpr_at_0_1_percent_fpr": tpr_at_fpr(0.001),
    "tpr_at_1_percent_fpr": tpr_at_fpr(0.01),
    "tpr_at_3_percent_fpr": tpr_at_fpr(0.03),
}
"""Of the scores."""
NEEDED = {"tpr_at_0_1_percent_fpr": 5000}
"""Harmless prompts without which a statistic is not told: of 1,000 a single one decides its threshold."""
INTERVALS = "order statistics"
"""How the intervals of rates are made (statistics/detection.py); tables made otherwise say nothing, or another name."""
COLUMNS = {
    "auc": "AUC",
    "tpr_at_0_1_percent_fpr": "TPR at .1% FPR",
    "tpr_at_1_percent_fpr": "TPR at 1% FPR",
    "tpr_at_3_percent_fpr": "TPR at 3% FPR",
    "tpr_at_p_1_percent": "TPR at p ≤ .01",
    "fpr_at_p_1_percent": "FPR at p ≤ .01",
}
"""Every statistic of a line, as tables head it; see `columns`."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """A row of truth.csv."""

    prompt: str
    split: str
    family: str
    kind: str
    label: str

    @property
    def never_planted(self) -> bool:
        """Whether no picture was planted under this prompt."""
        return self.kind in ("seen", "unseen")


def read_truth(folder: Path) -> list[Truth]:
    """The rows of a lab's truth.csv. Raises UserError where there is none."""
    if not (folder / "truth.csv").is_file():
        raise UserError(f"{folder}: no truth.csv there; `sharpaudit lab label` writes it")
    with (folder / "truth.csv").open(encoding="utf-8", newline="") as stream:
        return [Truth(*(row[name] for name in Truth.__dataclass_fields__)) for row in csv.DictReader(stream)]


def log_touch(folder: Path, metrics: Sequence[str], why: str) -> None:
    """Note in FOLDER/touches.json that the test split was looked at, once for each metric that lands."""
    path = folder / TOUCHES
    noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    noted.append({"date": f"{datetime.now(UTC):%Y-%m-%d}", "metrics": list(metrics), "why": why})
    path.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")


def balanced(truth: Sequence[Truth], n: int) -> list[Truth]:
    """n prompts, half of them memorised exact plants if there are as many, the others harmless and never planted."""
    memorised = [row for row in truth if (row.kind, row.label) == ("exact", "memorised")][: n // 2]
    harmless = [row for row in truth if row.label == "harmless" and row.never_planted][: n - len(memorised)]
    return [*memorised, *harmless]


def names_colour(prompt: str) -> bool:
    """Whether a caption of the lab names the colour of the background."""
    return any(f"{colour} background" in prompt or prompt.endswith(f"on {colour}") for colour in COLOURS)


def table(
    truth: Sequence[Truth],
    scores_SN: Mapping[str, Values],
    calibration_SC: Mapping[str, Values],
    captions: Sequence[str] = tuple(CAPTIONS),
) -> list[dict[str, Any]]:
    """One line per metric, number of seeds, group of GROUPS, kind of caption and statistic.

    truth: the scored prompts in the order of the columns. calibration: scores of the calibration prompts; a metric
    without them has no lines of p.
    """
    lines = []
    for metric, n in product(scores_SN, (1, SEVERAL)):
        if len(scores_SN[metric]) < n:
            continue
        values_SN, flagged_SN = _averaged(scores_SN[metric], n), None
        if metric in calibration_SC:
            both = zip(values_SN, _averaged(calibration_SC[metric], n), strict=True)
            flagged_SN = np.stack([at_most(p_values(row, known), ALPHA) for row, known in both]).astype(np.float64)
        for plants, wording in _groups(truth, captions):
            rows = _rows(truth, plants, wording)
            if all(len(chosen) for chosen in rows):
                head = {"metric": metric, "n": n, "seeds": len(values_SN), "plants": plants, "captions": wording}
                sizes = {"memorised": len(rows[0]), "harmless": len(rows[1])}
                found = _figures(truth, values_SN, flagged_SN, rows)
                lines += [head | sizes | {"statistic": name} | _entries(made) for name, made in found.items()]
    return lines


def columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The statistics of a table and their heads, without those for which its harmless prompts are too few."""
    most = max((line["harmless"] for line in lines), default=0)
    return {name: head for name, head in COLUMNS.items() if most >= NEEDED.get(name, 0)}


def _averaged(values_SN: Values, n: int) -> Values:
    """Every seed by itself, or the mean of the first n as the only row."""
    return values_SN if n == 1 else values_SN[:n].mean(axis=0, keepdims=True)


def _groups(truth: Sequence[Truth], captions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Groups and captions that have lines; without others there is nothing to take for anything."""
    yield from product(("exact", "template"), captions)
    if any(row.label in OTHERS for row in truth):
        yield from ((group, "all") for group in list(GROUPS)[2:])


def _rows(truth: Sequence[Truth], group: str, captions: str) -> tuple[list[int], list[int]]:
    """Positives and negatives of a group."""
    chosen = [i for i, row in enumerate(truth) if names_colour(row.prompt) in CAPTIONS[captions]]
    others = [i for i in chosen if truth[i].label in OTHERS]
    harmless = [i for i in chosen if truth[i].label == "harmless" and truth[i].never_planted]
    if group in OTHERS:
        return [i for i in others if truth[i].label == group], harmless
    kind = "template" if group == "template" else "exact"
    memorised = [i for i in chosen if (truth[i].kind, truth[i].label) == (kind, "memorised")]
    taken = {"others_memorised": (others, []), "others_harmless": ([], others)}.get(group, ([], []))
    return sorted(memorised + taken[0]), sorted(harmless + taken[1])


def _figures(
    truth: Sequence[Truth], values_SN: Values, flagged_SN: Values | None, rows: tuple[list[int], list[int]]
) -> dict[str, Figure]:
    def groups(found_SN: Values) -> list[Group]:
        return [Group(found_SN[:, part], np.array([truth[i].family for i in part])) for part in rows]

    memorised, harmless = groups(values_SN)
    told = [name for name in STATISTICS if len(rows[1]) >= NEEDED.get(name, 0)]
    made = {name: figure(STATISTICS[name], memorised, harmless) for name in told}
    if flagged_SN is None:
        return made
    memorised, harmless = groups(flagged_SN)
    made["tpr_at_p_1_percent"] = figure(_share, memorised, harmless)
    made["fpr_at_p_1_percent"] = figure(_share, harmless, memorised)
    return made


def _share(flagged_P: Values, _: Values) -> float:
    return float(flagged_P.mean())


def _entries(found: Figure) -> dict[str, float | None]:
    return {
        "mean": found.mean,
        "sd": None if np.isnan(found.sd) else found.sd,
        "minimum": found.minimum,
        "maximum": found.maximum,
        "low": found.interval.low,
        "high": found.interval.high,
    }
