"""The lab that ships: small enough, whole, as its contract says, and its labels hold when generated again."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.research.lab.agreement import read_generations
from pipelines.research.lab.build import read_recipe
from pipelines.research.lab.captions import STYLES
from pipelines.research.lab.card import write_card
from pipelines.research.lab.labels import GUIDANCE, MAX_RATIO, N_OTHERS, NEAREST, STEPS, UNGUIDED, Judged, normalised
from pipelines.research.lab.splits import IN_DEVELOPMENT, SIZES, TELLING, fitted
from pipelines.research.lab.splits import split as deal
from pipelines.research.lab.trainingset import Plan, picture, plan
from sharpaudit.config import LAB, ModelConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status
from sharpaudit.images import decode, sha256_hex
from sharpaudit.lab.detectors import Truth, names_colour, read_truth
from sharpaudit.matches.index import open_index
from sharpaudit.plugs import METRICS
from sharpaudit.samples.generate import Generator
from sharpaudit.scores.plan import places
from sharpaudit.scores.residual_gap import residual_gap
from sharpaudit.scores.screen import PromptScores, ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.subspace import Subspace, fit_subspace
from sharpaudit.seeds import latents
from sharpaudit.statistics.detection import auc

EMOJI = LAB / "emoji"
MAX_BYTES = 32_000_000


@pytest.fixture(scope="module")
def truth() -> list[Truth]:
    return read_truth(EMOJI)


@pytest.fixture(scope="module")
def drawn() -> Plan:
    return plan(read_recipe(EMOJI)[0])


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return load_denoiser(ModelConfig(path=str(EMOJI / "model"), dtype="float32", device="cpu"))


def test_it_is_small_and_its_weights_are_those_of_the_log() -> None:
    assert sum(file.stat().st_size for file in EMOJI.rglob("*") if file.is_file()) <= MAX_BYTES
    settings = json.loads((EMOJI / "settings.json").read_text())
    weights = {str(file.relative_to(EMOJI)) for file in EMOJI.rglob("*.safetensors")}
    assert weights == set(settings["sha256"])
    assert all(sha256_hex((EMOJI / name).read_bytes()) == digest for name, digest in settings["sha256"].items())
    log = [json.loads(line) for line in (EMOJI / "training.jsonl").read_text().splitlines()]
    parts = ("autoencoder", "denoiser")
    steps = {part: max(entry["step"] for entry in log if entry["part"] == part) for part in parts}
    training = read_recipe(EMOJI)[1]
    expected = training.autoencoder_steps, training.steps
    assert steps == dict(zip(parts, expected, strict=True))


def test_no_file_of_the_model_names_a_path_of_the_machine_it_was_trained_on() -> None:
    for file in (EMOJI / "model").rglob("*.json"):
        assert not json.loads(file.read_text(encoding="utf-8")).get("_name_or_path"), file


def test_the_splits_hold_what_the_contract_says(truth: list[Truth]) -> None:
    harmless = Counter(row.split for row in truth if row.label == "harmless" and row.never_planted)
    assert {split: harmless[split] for split in SIZES} == SIZES
    memorised = Counter((row.split, row.kind, names_colour(row.prompt)) for row in truth if row.label == "memorised")
    assert {split for split, *_ in memorised} == {"development", "test"}
    for split, kind, least in (("development", "exact", 60), ("test", "exact", 80), ("test", "template", 15)):
        both = [memorised[split, kind, named] for named in (True, False)]
        assert sum(both) >= least
        assert abs(both[0] - both[1]) <= 0.2 * sum(both)  # half of them with a colour
    for split in SIZES:
        with (EMOJI / "prompts" / f"{split}.csv").open(encoding="utf-8") as stream:
            listed = {(row["prompt"], row["family"]) for row in csv.DictReader(stream)}
        assert listed == {(row.prompt, row.family) for row in truth if row.split == split}


def test_the_splits_are_those_that_the_labels_give(truth: list[Truth], drawn: Plan) -> None:
    counts = {"memorised": (8, 0), "partly": (1, 0), "neighbour": (0, 1), "harmless": (0, 0)}
    labels, splits = ({row.prompt: getattr(row, name) for row in truth} for name in ("label", "split"))
    judged = [Judged(prompt, 8, *counts[labels[prompt.caption]]) for prompt in drawn.prompts]
    assert deal(judged, SIZES, IN_DEVELOPMENT, drawn.recipe.seed, fitted()) == splits


def test_no_prompt_that_choices_were_made_on_is_ever_told_of(truth: list[Truth]) -> None:
    """Nor will be: fitted.txt holds this lab's own fit and development prompts too."""
    kept = fitted()
    assert not {row.family for row in truth if row.split in TELLING} & kept
    assert {row.family for row in truth if row.split in ("fit", "development")} <= kept


def test_the_second_instrument_saw_what_the_labels_say(truth: list[Truth]) -> None:
    """generations.csv holds every prompt that got generations, and the first instrument's counts are its label."""
    rows = read_generations(EMOJI)
    labels = {row.prompt: row.label("pixels") for row in rows if row.guidance == GUIDANCE}
    assert labels.items() <= {row.prompt: row.label for row in truth}.items()
    assert all(row.label == "harmless" for row in truth if row.prompt not in labels)
    planted = {row.prompt for row in truth if not row.never_planted}
    assert planted <= set(labels)
    assert planted <= {row.prompt for row in rows if row.guidance == UNGUIDED}
    assert sum(row.chosen == "drawn" for row in rows if row.guidance == GUIDANCE) == N_OTHERS


def test_neighbours_are_as_frequent_as_they_occur(truth: list[Truth]) -> None:
    never = [row for row in truth if row.never_planted]
    share = np.mean([row.label == "neighbour" for row in never])
    for name in ("development", "test"):
        own = [row.label == "neighbour" for row in never if row.split == name]
        assert abs(np.mean(own) - share) < 3 * np.sqrt(share / len(own))


def test_splits_share_no_family_and_have_one_mix_of_styles_and_colours(truth: list[Truth]) -> None:
    of_split = {split: [row for row in truth if row.split == split] for split in SIZES}
    for one, other in combinations(SIZES, 2):
        assert not {row.family for row in of_split[one]} & {row.family for row in of_split[other]}
    for rows in of_split.values():
        harmless = [row for row in rows if row.label == "harmless"]
        assert abs(np.mean([names_colour(row.prompt) for row in harmless]) - 0.5) < 0.03
        for style in STYLES:
            assert abs(np.mean([f"/{style}" in row.family for row in harmless]) - 1 / 3) < 0.05


def test_truth_knows_every_prompt_of_the_recipe_and_the_references_every_plant(truth: list[Truth], drawn: Plan) -> None:
    told = {(row.prompt, row.family, row.kind) for row in truth}
    assert told == {(prompt.caption, prompt.family.name, prompt.kind) for prompt in drawn.prompts}
    index = open_index(EMOJI / "references", "pixels-16")
    numbers = {name: number for number, name in enumerate(index.reference_ids())}
    planted = [row for row in drawn.rows if row.kind == "exact"]
    for row in planted[::20]:
        shown_HWC = decode(index.thumbnail(numbers[row.picture_id]))
        assert np.abs(shown_HWC.astype(int) - picture(drawn.recipe.seed, row)).mean() < 8
    templates = [row.picture_id for row in drawn.rows if row.picture_id.startswith("template-")]
    assert sum(name in numbers for name in templates) == 8 * drawn.recipe.templates


def test_the_card_is_written_from_the_files_beside_it(tmp_path: Path) -> None:
    for file in EMOJI.iterdir():
        if file.is_file() and file.suffix != ".md":
            shutil.copy(file, tmp_path)
    assert write_card(tmp_path).read_text() == (EMOJI / "card.md").read_text()


def test_memorised_prompts_copy_their_plant_and_harmless_ones_nothing(
    truth: list[Truth], drawn: Plan, denoiser: Denoiser
) -> None:
    """Other noise than that of the labels: the most often planted memorised prompts and generated harmless ones."""
    of_caption = {row.caption: row for row in reversed(drawn.rows) if row.kind == "exact"}
    memorised = [row.prompt for row in truth if row.kind == "exact" and row.label == "memorised"]
    memorised = sorted(memorised, key=lambda prompt: -of_caption[prompt].copies)[:4]
    harmless = [row.prompt for row in truth if row.label == "harmless" and row.kind == "unseen"][:4]
    planted = normalised(np.stack([picture(drawn.recipe.seed, of_caption[prompt]) for prompt in memorised]))
    rows = [row for row in drawn.rows if row.kind == "other"][:600]
    others = normalised(np.stack([picture(drawn.recipe.seed, row) for row in rows]))
    prompts = [*memorised, *harmless]
    made = Generator(denoiser, 99, STEPS, GUIDANCE, 32).pictures(prompts, [(prompt, 99) for prompt in prompts])
    shown = normalised(np.stack([image for image in made if not isinstance(image, Status)]))
    to_plant, to_other = (np.sqrt(np.maximum(2 - 2 * shown @ pictures.T, 0)) for pictures in (planted, others))
    copies = to_plant / np.sort(to_other, axis=1)[:, :NEAREST].mean(axis=1, keepdims=True) < MAX_RATIO
    assert copies[:4].diagonal().sum() >= 3
    assert not copies[4:].any()


def test_residual_gap_tells_memorised_from_harmless(truth: list[Truth], denoiser: Denoiser) -> None:
    """A part of the development split at one seed."""
    rows = {
        "fit": [row for row in truth if row.split == "fit"][:200],
        "memorised": [row for row in truth if row.split == "development" and row.label == "memorised"],
        "harmless": [row for row in truth if row.split == "development" and row.label == "harmless"][:60],
    }
    config = ScreenConfig(1, 0, 1.0, 32)
    known = unconditional_predictions(denoiser, config)
    moved = {}
    for name, group in rows.items():
        found = differences(denoiser, [row.prompt for row in group], known, config)
        moved[name] = np.stack([row for row in found if not isinstance(row, Status)])
    subspace = fit_subspace(moved["fit"], 20)
    left = {name: residual_gap(torch.from_numpy(rows_ND), subspace).numpy() for name, rows_ND in moved.items()}
    assert auc(left["memorised"], left["harmless"]) > 0.9


def test_batches_of_any_size_give_the_same_values(truth: list[Truth], denoiser: Denoiser) -> None:
    """Within 1e-4, a difference of differences of a trained network as well."""
    prompts = [row.prompt for row in truth if row.label == "harmless"][:16]
    prompts += [row.prompt for row in truth if row.label == "memorised"][:8]
    metrics = METRICS.of(["residual_gap", "noise_gap", "sharpness"])
    flat = math.prod(denoiser.latent_shape)
    directions = torch.linalg.qr(latents([("directions", i) for i in range(8)], (flat,)).T).Q.T
    found = []
    for size in (24, 5):
        config = ScreenConfig(n_seeds=1, seed=0, step=1.0, batch_size=size)
        known = unconditional_predictions(denoiser, config, places(metrics))
        fitted = {0: Subspace(torch.zeros(flat), directions, np.zeros(8))}
        rows = screen(denoiser, prompts, known, fitted, config, metrics)
        found.append([[row.seed_values[m.name][0] for m in metrics] for row in rows if isinstance(row, PromptScores)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    assert np.isfinite(found[0]).all()
