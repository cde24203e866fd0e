"""Rivals of our own screen on a split of a lab: what else the same few evaluations of a prompt could say.

Every rival gets the differences of the same noise seeds and the same fit prompts, and is held against the residual gap
by the paired bootstrap of both rates. Choices are made on the development split. What won is a metric of its own; what
did not stays here, with its figures.

Shapes: S seeds, N prompts, F fit prompts, D latent elements, K directions, R reference pictures, E text embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from pipelines.bench.lines import Line, table
from pipelines.research.projected import ALONG, ALONG_OUTSIDE
from pipelines.research.screen_data import Data, Floats
from sharpaudit.lab.detectors import Truth, names_colour
from sharpaudit.scores.subspace import choose_components, principal_directions, typical
from sharpaudit.statistics.detection import Group, Statistic, auc, difference, figure, tpr_at_fpr

Rows = npt.NDArray[np.intp]
STATISTICS: dict[str, Statistic] = {"auc": auc, "tpr1": tpr_at_fpr(0.01)}


def directions(fit_FD: Floats, k: int | None = None, *, whole: bool = False) -> tuple[Floats, Floats]:
    """Mean (D,) and first k directions (K, D) of the fit prompts; k: None for as many as the rule chooses.

    whole: of all of them, also of those that look like no other.
    """
    kept_FD = fit_FD if whole else fit_FD[typical(fit_FD)]
    mean_D, directions_KD = principal_directions(kept_FD, k or choose_components(kept_FD.astype(np.float32)))[:2]
    return mean_D, directions_KD


def left(fit_FD: Floats, rows_ND: Floats, k: int | None = None, *, whole: bool = False) -> Floats:
    """What the first k directions of the fit prompts leave, with shape (N, D)."""
    mean_D, directions_KD = directions(fit_FD, k, whole=whole)
    centred_ND = rows_ND - mean_D
    rest_ND: Floats = centred_ND - (centred_ND @ directions_KD.T) @ directions_KD
    return rest_ND


def gap(fit_FD: Floats, rows_ND: Floats, k: int | None = None, *, whole: bool = False) -> Floats:
    """The residual gap, with shape (N,)."""
    norms_N: Floats = np.linalg.norm(left(fit_FD, rows_ND, k, whole=whole), axis=1)
    return norms_N


def regressed(data: Data, s: int) -> tuple[Floats, Floats]:
    """(g) What a ridge regression on the text embedding does not explain, of fit (out of fold) and audited prompts."""
    text_FE, text_NE = data.texts
    fit_FD, rows_ND = data.fit_SFD[s], data.moved_SND[s]
    mean_D = fit_FD.mean(0)
    kernel_FF, kernel_NF = text_FE @ text_FE.T, text_NE @ text_FE.T
    fold_F = np.arange(len(fit_FD)) % 5
    best: tuple[float, float, Floats] | None = None
    for share in (1e-3, 1e-2, 1e-1, 1.0):
        penalty = share * float(np.trace(kernel_FF)) / len(kernel_FF)
        rest_FD = np.empty_like(fit_FD)
        for fold in range(5):
            held, kept = fold_F == fold, fold_F != fold
            solved = np.linalg.solve(
                kernel_FF[np.ix_(kept, kept)] + penalty * np.eye(kept.sum()), fit_FD[kept] - mean_D
            )
            rest_FD[held] = fit_FD[held] - mean_D - kernel_FF[np.ix_(held, kept)] @ solved
        error = float(np.square(rest_FD).sum())
        if best is None or error < best[0]:
            best = error, penalty, rest_FD
    if best is None:
        raise ValueError("no penalty was tried")
    solved = np.linalg.solve(kernel_FF + best[1] * np.eye(len(kernel_FF)), fit_FD - mean_D)
    return best[2], rows_ND - mean_D - kernel_NF @ solved


def matched(data: Data, s: int, k: int | None = None) -> Floats:
    """(d) The largest projection of -R on a reference's direction outside the subspace, with shape (N,).

    delta_eps is about -(a / sigma) (E[x0 | c] - E[x0]): what a memorised picture adds points along its latent.
    """
    mean_D, directions_KD = directions(data.fit_SFD[s], k)

    def outside(rows: Floats) -> Floats:
        rest: Floats = rows - (rows @ directions_KD.T) @ directions_KD
        return rest

    references_RD = outside(data.references_RD)
    references_RD /= np.linalg.norm(references_RD, axis=1, keepdims=True)
    alike_NR = -outside(data.moved_SND[s] - mean_D) @ references_RD.T
    best_N: Floats = alike_NR.max(axis=1)
    return best_N


def crossed(data: Data) -> Floats:
    """(c) sum over pairs of seeds of <R_k, R_l> / (n (n - 1)): what the residuals of all seeds have in common."""
    rests = np.stack([left(fit, rows) for fit, rows in zip(data.fit_SFD, data.moved_SND, strict=True)])
    n = len(rests)
    found: Floats = (np.square(rests.sum(0)).sum(1) - np.square(rests).sum((0, 2))) / (n * (n - 1))
    return found


def scatter(data: Data) -> Floats:
    """(c) Variance of the differences over seeds, summed: about tr(DH^T DH)."""
    found: Floats = data.moved_SND.var(axis=0, ddof=1).sum(1)
    return found


def averaged(data: Data) -> Floats:
    """Norm of the averaged residual."""
    return gap(data.fit_SFD.mean(0), data.moved_SND.mean(0))


def slope(data: Data, s: int) -> Floats:
    """(f) |DH v| outside of what it is for fit prompts: the change of delta_eps from x to x + h v, two evaluations."""
    return gap(data.fit_beside_SFD[s] - data.fit_SFD[s], data.beside_SND[s] - data.moved_SND[s])


def both(data: Data, s: int) -> Floats:
    """(f) The residual gap twice: mean over x and x + h v."""
    return (gap(data.fit_SFD[s], data.moved_SND[s]) + gap(data.fit_beside_SFD[s], data.beside_SND[s])) / 2


def standardised(data: Data, s: int) -> Floats:
    """The residual gap and the matched filter, each in standard deviations of harmless prompts, added.

    Deviations are those of half of the fit prompts on the other half.
    """
    half = np.arange(len(data.fit)) % 2 == 0
    total = np.zeros(len(data.truth))
    for score in (_gap_of, _matched_of):
        known = score(data, s, ~half, half)
        total += (score(data, s, np.ones_like(half), None) - known.mean()) / known.std()
    return total


def _gap_of(data: Data, s: int, kept: npt.NDArray[np.bool_], rows: npt.NDArray[np.bool_] | None) -> Floats:
    scored = data.moved_SND[s] if rows is None else data.fit_SFD[s][rows]
    return gap(data.fit_SFD[s][kept], scored)


def _matched_of(data: Data, s: int, kept: npt.NDArray[np.bool_], rows: npt.NDArray[np.bool_] | None) -> Floats:
    scored = data.moved_SND if rows is None else data.fit_SFD[:, rows]
    return matched(replace(data, fit_SFD=data.fit_SFD[:, kept], moved_SND=scored), s)


@dataclass(frozen=True)
class Rival:
    """nfe: evaluations a prompt. scores: of shape (S, N), or (1, N) where seeds are joined."""

    name: str
    nfe: int
    scores: Callable[[Data], Floats]
    coloured: bool | None = None
    """Judged on captions that name a colour, or on those that name none; on all where None."""


def _each(of: Callable[[Data, int], Floats]) -> Callable[[Data], Floats]:
    return lambda data: np.stack([of(data, s) for s in range(len(data.moved_SND))])


def _at(k: int | None) -> Callable[[Data], Floats]:
    return _each(lambda data, s: gap(data.fit_SFD[s], data.moved_SND[s], k))


def _fitted_on(chosen: Callable[[Data], npt.NDArray[np.bool_]]) -> Callable[[Data], Floats]:
    return _each(lambda data, s: gap(data.fit_SFD[s][chosen(data)], data.moved_SND[s]))


def _hiding(n: int, kind: str, *, whole: bool = False) -> Callable[[Data], Floats]:
    """n memorised plants of a kind among the fit prompts; they are then scored on what they taught."""

    def of(data: Data, s: int) -> Floats:
        planted = [i for i, row in enumerate(data.truth) if (row.kind, row.label) == (kind, "memorised")][:n]
        return gap(np.concatenate([data.fit_SFD[s], data.moved_SND[s][planted]]), data.moved_SND[s], whole=whole)

    return _each(of)


def _first(n: int) -> Callable[[Data], npt.NDArray[np.bool_]]:
    return lambda data: np.arange(len(data.fit)) < n


def _few_of(coloured: bool, data: Data) -> npt.NDArray[np.bool_]:
    """All fit prompts of the other kind of caption, and of this kind one for nine of those."""
    own = _colours(data) == coloured
    chosen: npt.NDArray[np.bool_] = ~own | (own & (np.cumsum(own) <= np.count_nonzero(~own) // 9))
    return chosen


def _colours(data: Data) -> npt.NDArray[np.bool_]:
    return np.array([names_colour(row.prompt) for row in data.fit])


def fit_sets(kind: str) -> list[Rival]:
    """The residual gap with fit sets of another size, style or purity."""
    return [
        *(Rival(f"{n} fit prompts", 1, _fitted_on(_first(n))) for n in (100, 200, 400)),
        Rival("fit prompts that name a colour only", 1, _fitted_on(_colours)),
        Rival("fit prompts that name no colour only", 1, _fitted_on(lambda d: ~_colours(d))),
        *(
            Rival(f"{what}, judged on captions that name {which} colour", 1, scores, coloured)
            for which, coloured in (("a", True), ("no", False))
            for what, scores in (
                ("all fit prompts", _at(None)),
                ("one in ten of that kind", _fitted_on(partial(_few_of, coloured))),
            )
        ),
        Rival("4 memorised prompts among the fit prompts", 1, _hiding(4, kind)),
        Rival("16 memorised prompts among the fit prompts", 1, _hiding(16, kind)),
        Rival("no fit prompt left out", 1, _hiding(0, kind, whole=True)),
        Rival("4 memorised ones among them, none left out", 1, _hiding(4, kind, whole=True)),
        Rival("16 memorised ones among them, none left out", 1, _hiding(16, kind, whole=True)),
    ]


def rivals(n_seeds: int, kind: str) -> list[Rival]:
    """All of them; the first is the yardstick of one evaluation, `mean` that of several. kind: of plants judged."""
    single = [
        Rival("residual gap", 1, _at(None)),
        *(Rival(f"residual gap, k = {k}", 1, _at(k)) for k in (5, 10, 20, 50, 100, 200)),
        Rival("(g) unexplained by the text", 1, _each(lambda d, s: np.linalg.norm(regressed(d, s)[1], axis=1))),
        Rival("(g) and outside the subspace of the rest", 1, _each(lambda d, s: gap(*regressed(d, s)))),
        Rival("(g) sharpness along the residual", 3, lambda d: d.sharpness_SN[ALONG.name]),
        Rival("(g) the same, outside the subspace", 3, lambda d: d.sharpness_SN[ALONG_OUTSIDE.name]),
        Rival("(d) matched filter", 1, _each(matched)),
        Rival("(d) plus residual gap, standardised", 1, _each(standardised)),
        Rival("(f) slope along a common direction", 2, _each(slope)),
        Rival("(f) residual gap at both places", 2, _each(both)),
    ]
    joined = [
        Rival("mean residual gap", n_seeds, lambda d: _at(None)(d).mean(0, keepdims=True)),
        Rival("mean residual gap, fitted at the first seed only", n_seeds, _fitted_once),
        Rival("residual gap of the mean", n_seeds, lambda d: averaged(d)[None]),
        Rival("(c) common to pairs of seeds", n_seeds, lambda d: crossed(d)[None]),
        Rival("(c) scatter over seeds", n_seeds, lambda d: scatter(d)[None]),
        Rival("(d) mean matched filter", n_seeds, lambda d: _each(matched)(d).mean(0, keepdims=True)),
    ]
    return [*single, *fit_sets(kind), *joined]


def _fitted_once(data: Data) -> Floats:
    """All seeds scored on the directions of the first."""
    scores = [gap(data.fit_SFD[0], rows) for rows in data.moved_SND]
    mean_1N: Floats = np.mean(scores, axis=0, keepdims=True)
    return mean_1N


@dataclass(frozen=True)
class Finding:
    """A rival beside the yardstick of as many seeds: figures by statistic, each with the paired difference."""

    rival: Rival
    figures: dict[str, tuple[float, float, float, float]]
    """Mean, and the difference to the yardstick with its interval."""
    lost: list[str]
    """Memorised prompts that the yardstick finds at 1% false positives at more seeds."""
    n: int
    """Memorised prompts."""


def judge(data: Data, kind: str = "exact") -> Iterator[Finding]:
    """Every rival on memorised plants of a kind against the harmless prompts."""
    yardsticks: dict[tuple[int, bool | None], tuple[Group, Group]] = {}
    for rival in rivals(len(data.moved_SND), kind):
        chosen = _chosen(data.truth, kind, rival.coloured)
        if not all(map(len, chosen)):
            continue  # no memorised prompt of this kind
        scores_SN = rival.scores(data)
        groups = _groups(data.truth, scores_SN, chosen)
        yard = yardsticks.setdefault((len(scores_SN), rival.coloured), groups)
        figures = {}
        for name, statistic in STATISTICS.items():
            mean = figure(statistic, *groups).mean
            other = figure(statistic, *yard).mean
            interval = difference(statistic, groups, yard, rate=name != "auc")
            figures[name] = (mean, mean - other, interval.low, interval.high)
        lost = _found(*yard) > _found(*groups)
        yield Finding(rival, figures, [data.truth[i].prompt for i in chosen[0][lost]], len(lost))


def _chosen(truth: Sequence[Truth], kind: str, coloured: bool | None) -> tuple[Rows, Rows]:
    """The memorised plants of a kind and the harmless prompts, among captions that name a colour, none, or all."""
    told = np.array([coloured is None or names_colour(row.prompt) == coloured for row in truth])
    memorised = np.array([(row.kind, row.label) == (kind, "memorised") for row in truth])
    harmless = np.array([row.label == "harmless" and row.never_planted for row in truth])
    return np.flatnonzero(told & memorised), np.flatnonzero(told & harmless)


def _groups(truth: Sequence[Truth], scores_SN: Floats, chosen: tuple[Rows, Rows]) -> tuple[Group, Group]:
    families = np.array([row.family for row in truth])
    memorised, harmless = (Group(scores_SN[:, rows], families[rows]) for rows in chosen)
    return memorised, harmless


def _found(memorised: Group, harmless: Group) -> Rows:
    """At how many seeds each memorised prompt lies above all but 1% of the harmless ones."""
    allowed = int(0.01 * harmless.values_SN.shape[1] + 1e-9)
    lines_S1 = np.sort(harmless.values_SN, axis=1)[:, ::-1][:, allowed, None]
    found: Rows = (memorised.values_SN > lines_S1).sum(axis=0)
    return found


def bench_lines(findings: Sequence[Finding], kind: str) -> Iterator[Line]:
    """Every figure, and its paired difference to the yardstick of as many seeds. kind: of plants judged."""
    for found in findings:
        slug = re.sub(r"[^a-z0-9]+", "_", found.rival.name.lower()).strip("_")
        for name, (mean, delta, low, high) in found.figures.items():
            yield Line(f"screens.{kind}.{slug}.{name}", mean, "share", found.n)
            yield Line(f"screens.{kind}.{slug}.{name}_difference", delta, "share", found.n, low, high)


def markdown(findings: Sequence[Finding]) -> str:
    """The table for people, and the memorised prompts that a rival loses."""
    head = ["screen", "NFE", "AUC", "TPR at 1% FPR", "lost"]
    rows = []
    for found in findings:
        cells = [f"{m:.3f} ({d:+.3f}, {low:+.3f} to {high:+.3f})" for m, d, low, high in found.figures.values()]
        rows.append([found.rival.name, str(found.rival.nfe), *cells, str(len(found.lost))])
    lost = [f"lost by {found.rival.name}: {'; '.join(found.lost)}\n" for found in findings if found.lost]
    return "\n".join([table(head, rows), *lost])
