"""The figures of curvature that show a lab's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.research.geometry import prompts
from pipelines.research.geometry.drawing import COLOURS, Asked, Made, panels
from pipelines.research.geometry.prompts import Model
from sharpaudit.spectra.hessian import BRANCHES, Floats
from sharpaudit.tables.records import digest_of

Kept = dict[str, Floats]
Compute = Callable[[Model, int, list[str]], Iterator[tuple[str, Kept]]]
PROBES, DRAWS = 16, 3
"""Random signs of a trace; initial latents of a prompt."""


def whole(model: Model, k: int, some: list[str], kept: Path) -> Iterator[tuple[str, Kept]]:
    """Of each prompt all eigenvalues of each branch, and "relative", from `kept` where they are there."""
    return _once("whole", prompts.spectra, model, k, some, kept)


def few(model: Model, k: int, some: list[str], kept: Path) -> Iterator[tuple[str, Kept]]:
    """Of each prompt both ends of what it adds, as "low" and "high", from `kept` where they are there."""
    return _once("ends", prompts.both_ends, model, k, some, kept)


def _once(name: str, compute: Compute, model: Model, k: int, some: list[str], kept: Path) -> Iterator[tuple[str, Kept]]:
    """What is computed of each prompt, a file each under a name that holds the model's digest."""
    kept.mkdir(parents=True, exist_ok=True)
    files = {p: kept / f"{name}-{digest_of([model.denoiser.digest, p, k])[:24]}.npz" for p in some}
    for prompt, found in compute(model, k, [p for p in some if not files[p].exists()]):
        part = files[prompt].with_suffix(".inprogress")
        with part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **found)
        part.replace(files[prompt])
    for prompt in some:
        with np.load(files[prompt]) as held:
            yield prompt, {of: held[of] for of in held.files}


def spectra(asked: Asked) -> Made:
    """(c) What a prompt adds at the first step, by group, and four prompts over three initial latents."""
    model, rows = asked.model(), []
    figure, axes = panels(2, 4, 3.2, 2.7)
    for panel, (group, every) in zip(axes[0], model.prompts.items(), strict=True):
        for prompt, found in whole(model, 0, every[: prompts.WHOLE], asked.kept):
            panel.plot(found["difference"], linewidth=0.8, color=COLOURS[group])
            rows.append(
                {"group": group, "prompt": prompt, "draw": 0, "by": "whole matrix"} | _told(found["difference"])
            )
        for prompt, found in few(model, 0, every[prompts.WHOLE :], asked.kept):
            ends = {"smallest": float(found["low"][0]), "largest": float(found["high"][0])}
            rows.append({"group": group, "prompt": prompt, "draw": 0, "by": "ends"} | ends)
        panel.set(title=f"{group}, {min(len(every), prompts.WHOLE)} prompts", xlabel="eigenvalue of DH, rising")
        panel.title.set_size(9)
    for panel, (group, every) in zip(axes[1], model.prompts.items(), strict=True):
        for k in range(DRAWS):
            for prompt, found in whole(model, k, every[:1], asked.kept):
                panel.plot(found["difference"], linewidth=0.8, label=f"draw {k}")
                if k:
                    told = {"group": group, "prompt": prompt, "draw": k, "by": "whole matrix"}
                    rows.append(told | _told(found["difference"]))
        panel.set(title=every[0] if every else "", xlabel="eigenvalue of DH, rising")
        panel.title.set_size(7)
    _level(axes[0])
    _level(axes[1])
    return Made(figure, rows)


def _told(values_D: Floats) -> dict[str, float | int]:
    extremes = {"smallest": float(values_D[0]), "largest": float(values_D[-1])}
    return {"not negative": int((values_D >= 0).sum()), "of": len(values_D), "sum": float(values_D.sum())} | extremes


def _level(line: Any) -> None:
    limits = [panel.get_ylim() for panel in line]
    for panel in line:
        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def traces(asked: Asked) -> Made:
    """(d) -tr H against |s|^2 and -tr H^3 against |Hs|^2 over all steps, a prompt of each group."""
    model, rows = asked.model(), []
    figure, axes = panels(2, 4, 3.2, 2.6)
    for column, (group, every) in enumerate(model.prompts.items()):
        for prompt in every[:1]:
            found = list(prompts.along(model, prompt, 0, PROBES))
            rows += [{"group": group, "prompt": prompt} | row for row in found]
            for line, pair in enumerate((("|s|^2", "-tr H"), ("|Hs|^2", "-tr H^3"))):
                panel = axes[line, column]
                for name in pair:
                    panel.semilogy([row["step"] for row in found], [row[name] for row in found], label=name)
                panel.set(title=group, xlabel="step")
                panel.legend(fontsize=7)
    return Made(figure, rows)


def branches(asked: Asked) -> Made:
    """(e) Conditional against unconditional eigenvalues at the first step, in their order."""
    model, rows = asked.model(), []
    figure, axes = panels(1, 4, 3.2, 3.0)
    for panel, (group, every) in zip(axes[0], model.prompts.items(), strict=True):
        for prompt, found in whole(model, 0, every[: prompts.WHOLE], asked.kept):
            given, empty = (found[name] for name in BRANCHES[:2])
            panel.plot(empty, given, ".", markersize=2, color=COLOURS[group])
            below = {"conditional below unconditional": float((given < empty).mean())}
            rows.append({"group": group, "prompt": prompt} | below | {"mean difference": float((given - empty).mean())})
        reach = panel.get_xlim()
        panel.plot(reach, reach, color="#1c2430", linewidth=0.7)
        panel.set(title=group, xlabel="of H_0", ylabel="of H_c")
    return Made(figure, rows)


def generalised(asked: Asked) -> Made:
    """(g) lambda of -H_0 v = lambda (-H_c) v at the first step: below 1 where the prompt makes the density narrower."""
    model, rows = asked.model(), []
    figure, axes = panels(1, 4, 3.2, 2.8)
    for panel, (group, every) in zip(axes[0], model.prompts.items(), strict=True):
        for prompt, found in whole(model, 0, every[: prompts.WHOLE], asked.kept):
            values = found["relative"]
            row: dict[str, object] = {"group": group, "prompt": prompt, "definite": bool(len(values))}
            if len(values):
                panel.plot(values, linewidth=0.8, color=COLOURS[group])
                row |= {
                    "smallest": float(values[0]),
                    "largest": float(values[-1]),
                    "below 1": float((values < 1).mean()),
                }
            rows.append(row)
        panel.set(title=group, xlabel="lambda, rising")
    _level(axes[0])
    return Made(figure, rows)
