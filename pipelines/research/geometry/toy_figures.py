"""The figures of curvature that need no lab: closed forms, and two models that are trained in minutes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipelines.research.geometry import gaussians, toys
from pipelines.research.geometry.drawing import COLOURS, Asked, Made, panels
from sharpaudit.seeds import generator
from sharpaudit.spectra.hessian import Floats

LINE = "#1c2430"
MODES = ("broad", "narrow")
PLANE_TIMES = {"first": toys.T - 1, "middle": toys.T // 2, "last": 4}
NINES, SHOWN, SPECTRA = "nine", 36, 8
"""Class whose one picture is repeated; generated samples; those of them whose spectra are drawn."""


def plane(_: Asked) -> Made:
    """(a) A mixture in the plane, learned: score vectors and eigenvalues at the first, middle and last step."""
    data, mode = toys.plane_data()
    network = toys.train(data, np.zeros(len(data), np.int64), toys.PLANE)
    figure, axes = panels(1, 3)
    rows = []
    for panel, (name, t) in zip(axes[0], PLANE_TIMES.items(), strict=True):
        a, sigma = (float(part[t]) for part in toys.levels())
        x = a * data + sigma * generator("geometry", "plane noise", t).standard_normal(data.shape)
        panel.scatter(*x.T, s=2, c=np.where(mode, COLOURS["exact"], COLOURS["not memorised"]), linewidths=0)
        reach = max(2.2, 0.8 * float(np.abs(x).max()))
        _vectors(panel, network, t, reach)
        at = [_mode(network, t, a, sigma, which) for which in range(len(toys.MEANS))]
        rows += [{"step": name, "timestep": t, "at the mode": told} | row for told, row in zip(MODES, at, strict=True)]
        told = ["{learned smaller:.3g}, {learned larger:.3g}".format(**row) for row in at]
        title = f"{name} step: broad {told[0]}\nnarrow {told[1]}"
        panel.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach))
        panel.title.set_size(8)
    return Made(figure, rows)


def _vectors(panel: Any, network: toys.Network, t: int, reach: float) -> None:
    """Directions of the learned score on a grid, coloured by the logarithm of their length."""
    grid = np.stack(np.meshgrid(*[np.linspace(-reach, reach, 17)] * 2), axis=-1).reshape(-1, 2)
    s = toys.score(network, t, toys.none_of(network))(torch.from_numpy(grid).float()).numpy()
    size = np.maximum(np.linalg.norm(s, axis=1), 1e-9)
    panel.quiver(*grid.T, *(s / size[:, None]).T, np.log10(size), cmap="viridis", scale=28)


def _mode(network: toys.Network, t: int, a: float, sigma: float, which: int) -> dict[str, float]:
    """Eigenvalues at the centre of a mode, learned and exact."""
    at = a * np.array([toys.MEANS[which]])
    none = toys.none_of(network)
    learned = np.linalg.eigvalsh(toys.hessians(network, torch.from_numpy(at).float(), t, none)[0])
    exact = np.linalg.eigvalsh(toys.plane_hessian(at, a, sigma)[0])
    named = {"learned": learned, "exact": exact}
    return {f"{by} {end}": float(pair[i]) for by, pair in named.items() for i, end in enumerate(("smaller", "larger"))}


def digits(_: Asked) -> Made:
    """(b) One nine many times against all threes: what is generated, and conditional spectra of both along the way."""
    data, classes, nine = toys.digits_data()
    network = toys.train(data, classes, toys.DIGITS)
    figure, axes = panels(2, 4, 2.6, 2.6)
    rows = []
    for line, (name, of) in zip(axes, {NINES: toys.MEMORISED, "three": toys.OTHERS}.items(), strict=True):
        steps = dict(toys.sampled(network, SHOWN, of, toys.GUIDANCE, seed=0))
        made = steps.pop(-1).double().numpy()
        line[0].imshow(_grid(made), cmap="gray_r", vmin=-1, vmax=1)
        line[0].set(title=f"{SHOWN} generated of class {name}", xticks=[], yticks=[])
        line[0].title.set_size(8)
        training = nine[None] if name == NINES else data[classes == of]
        nearest = np.linalg.norm(made[:, None] - training, axis=2).min(axis=1)
        times = list(steps)
        shown = {"first": times[0], "middle": times[len(times) // 2], "last": times[-1]}
        for panel, (step, t) in zip(line[1:], shown.items(), strict=True):
            spectra = np.linalg.eigvalsh(toys.hessians(network, steps[t][:SPECTRA], t, of))
            panel.plot(spectra.T, linewidth=0.8, color=COLOURS["exact" if name == NINES else "not memorised"])
            panel.set(title=f"{name}, {step} step", xlabel="rank of the eigenvalue of H_c")
            panel.title.set_size(8)
            rows += [
                {"class": name, "step": step, "timestep": t, "sample": i, "not negative": int((found >= 0).sum())}
                | {"smallest": float(found[0]), "median": float(np.median(found)), "largest": float(found[-1])}
                | {"distance to the nearest training picture": float(nearest[i])}
                for i, found in enumerate(spectra)
            ]
    return Made(figure, rows)


def _grid(pictures_ND: Floats, side: int = 6) -> Floats:
    tiles = np.pad(pictures_ND.reshape(side, side, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    found: Floats = tiles.transpose(0, 2, 1, 3).reshape(side * 10, side * 10)
    return found


def identities(_: Asked) -> Made:
    """(f) Both sides of the identities on single Gaussians, and by how much a mixture of two misses them."""
    rows, missed = list(gaussians.identities()), list(gaussians.mixtures())
    figure, axes = panels(1, 2, 4.6, 3.4)
    left, right = axes[0]
    for name in gaussians.IDENTITIES:
        some = [row for row in rows if row["identity"] == name]
        left.loglog([row["closed"] for row in some], [row["drawn"] for row in some], "o", markersize=3, label=name)
    left.plot(left.get_xlim(), left.get_xlim(), color=LINE, linewidth=0.7)
    left.set(xlabel="closed form", ylabel=f"mean of {gaussians.DRAWS:,} draws", title="single Gaussians")
    for name in list(missed[0])[1:]:
        right.plot([row["distance"] for row in missed], [row[name] for row in missed], label=name)
    right.set(xlabel="distance of two components of variance 1", title="a mixture of two")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    return Made(figure, [*rows, *missed])


def fisher_rao(_: Asked) -> Made:
    """(h) Fisher and Rao's distance to second order, whitened by S and not."""
    rows = list(gaussians.fisher_rao())
    figure, axes = panels(1, 2, 4.2, 3.2)
    for panel, kind in zip(axes[0], ("variances", "mean"), strict=True):
        some = [row for row in rows if row["what changes"] == kind]
        for name in ("E[Ds^T S Ds] / expected", "E|Ds|^2 / expected"):
            panel.semilogx([row["change"] for row in some], [row[name] for row in some], label=name)
        panel.set(title=f"a change of the {kind}", xlabel="size of the change", ylim=(0, None))
        panel.legend(fontsize=7)
    return Made(figure, rows)
