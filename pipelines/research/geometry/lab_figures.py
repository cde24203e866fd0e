"""The figures of curvature that show a lab's model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.research.geometry import prompts
from pipelines.research.geometry.drawing import COLOURS, Asked, Made, panels
from pipelines.research.geometry.prompts import Model
from sharpaudit.spectra.hessian import BRANCHES, Floats
from sharpaudit.tables.records import digest_of

Kept = dict[str, Floats]
PROBES, DRAWS = 16, 3
"""Random signs of a trace; initial latents of a prompt."""


def whole(asked: Asked, model: Model, some: list[str], k: int = 0, step: int = 1) -> Iterator[tuple[str, Kept]]:
    """What `prompts.spectra` has of each prompt; a file each, under a name that holds the model's digest."""
    asked.kept.mkdir(parents=True, exist_ok=True)
    files = {p: asked.kept / f"whole-{digest_of([model.denoiser.digest, p, k, step])[:24]}.npz" for p in some}
    for prompt, found in prompts.spectra(model, [p for p in some if not files[p].exists()], k, step):
        part = files[prompt].with_suffix(".inprogress")
        with part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **found)
        part.replace(files[prompt])
    for prompt in some:
        with np.load(files[prompt]) as held:
            yield prompt, {of: held[of] for of in held.files}


def spectra(asked: Asked) -> Made:
    """(c) What a prompt adds at the first step, by group; one of each from other latents, and at the last step."""
    model, rows = asked.model(), []
    figure, axes = panels(3, 4, 3.2, 2.6)

    def draw(panel: Any, group: str, some: list[str], k: int = 0, step: int = 1, **style: Any) -> None:
        for prompt, found in whole(asked, model, some, k, step):
            panel.plot(found["difference"], linewidth=0.7, **style)
            rows.append({"group": group, "prompt": prompt, "draw": k, "step": step} | _told(found))

    for (group, every), first, draws, last in zip(model.prompts.items(), *axes, strict=True):
        draw(first, group, every, color=COLOURS[group])
        first.set(title=f"{group}, {len(every)} prompts")
        for prompt, found in whole(asked, model, every[:1]):
            draws.plot(found["difference"], linewidth=0.7, label="draw 0")
            draws.set(title=prompt)
        for k in range(1, DRAWS):
            draw(draws, group, every[:1], k, label=f"draw {k}")
        draw(last, group, every[:1], step=prompts.STEPS, color=COLOURS[group])
        last.set(title="the same prompt, last step", xlabel="rank of the eigenvalue of DH")
        if every:
            draws.legend(fontsize=6)
        for panel in (first, draws, last):
            panel.title.set_size(7)
    for line in axes:
        _level(line)
    return Made(figure, rows)


def _told(found: Kept) -> dict[str, float | int]:
    values_D = found["difference"]
    extremes = {"smallest": float(values_D[0]), "largest": float(values_D[-1])}
    counted = {"not negative": int((values_D >= 0).sum()), "of": len(values_D), "sum": float(values_D.sum())}
    return counted | extremes | {"asymmetry": float(found["asymmetry"][0])}


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
        for prompt, found in whole(asked, model, every):
            given, empty = (found[name] for name in BRANCHES[:2])
            panel.plot(empty, given, ".", markersize=2, color=COLOURS[group])
            below: dict[str, object] = {"conditional below unconditional": float((given < empty).mean())}
            ends = {f"{of} {i}": float(v[-i]) for of, v in (("H_0", empty), ("H_c", given)) for i in (4, 3, 2, 1)}
            below |= {"mean difference": float((given - empty).mean())}
            rows.append({"group": group, "prompt": prompt, **below, **ends})
        reach = panel.get_xlim()
        panel.plot(reach, reach, color="#1c2430", linewidth=0.7)
        panel.set(title=group, xlabel="of H_0", ylabel="of H_c")
    return Made(figure, rows)


def generalised(asked: Asked) -> Made:
    """(g) lambda of -H_0 v = lambda (-H_c) v at the first step: below 1 where the prompt makes the density narrower."""
    model, rows = asked.model(), []
    figure, axes = panels(1, 4, 3.2, 2.8)
    for panel, (group, every) in zip(axes[0], model.prompts.items(), strict=True):
        for prompt, found in whole(asked, model, every):
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
        panel.set(title=group, xlabel="rank", ylabel="lambda")
    _level(axes[0])
    return Made(figure, rows)
