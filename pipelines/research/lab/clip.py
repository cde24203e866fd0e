"""A CLIP of the lab's pictures and captions, in the files that open_clip reads: alignment can be told of the lab too.

An image tower (open_clip's ResNet) and a text tower learn to tell which caption of a batch belongs to which picture
(Radford et al., ICML 2021). What they see is drawn anew for every step, by the grammar that the lab's training set is
drawn by, under captions that neither a plant nor a split has: no planted picture is the one right picture of its
caption for this model. A state on disk resumes it as if it had never stopped.

Shapes: B batch, N pairs.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from pipelines.research.lab import checkpoint
from pipelines.research.lab.build import minutes, versions
from pipelines.research.lab.captions import N_WORDINGS, PLACES, SIZES, STYLES, Family, families
from pipelines.research.lab.drawing import SIDE, compose
from pipelines.research.lab.tokenizer import MAX_LENGTH, write_tokenizer
from pipelines.research.lab.training import Log, optimizer_step, set_lr, to_tensor
from pipelines.research.lab.trainingset import Recipe, plan
from sharpaudit.embedders.base import Describer, open_embedder
from sharpaudit.embedders.open_clip import CONFIG, FOLDER, OPEN_CLIP, WEIGHTS
from sharpaudit.embedders.weights import Shelf, sha256_of_file
from sharpaudit.lab.detectors import COLOURS
from sharpaudit.seeds import generator
from sharpaudit.tables.records import digest_of

NAME = "lab"
"""Of the architecture: `open_clip:lab`."""
DIMENSION = 64
VISION = {"image_size": SIDE, "layers": [2, 2, 2, 1], "width": 16, "head_width": 64}
TEXT = {"context_length": MAX_LENGTH, "width": 128, "heads": 4, "layers": 2}
PREPARED = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
MOST_SCALE = float(np.log(100))
PARTS: Mapping[str, Sequence[str]] = {"size": SIZES, "place": PLACES, "style": STYLES, "colour": COLOURS}
"""What a caption says beside the object, and what else it could say."""


@dataclass(frozen=True)
class Training:
    """The settings. held_out: pairs under captions that are never shown."""

    seed: int = 0
    batch: int = 192
    steps: int = 1_400
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 100
    held_out: int = 1_000
    checkpoint_every: int = 100
    log_every: int = 20


MINIATURE = Training(batch=16, steps=30, held_out=20, checkpoint_every=10, log_every=5)


@dataclass(frozen=True)
class Pairs:
    """Families that pairs are drawn of, without and with a colour."""

    seed: int
    plain: Sequence[Family]
    coloured: Sequence[Family]

    def drawn(self, name: str, number: int, n: int) -> tuple[list[Family], npt.NDArray[np.uint8], list[str]]:
        """(families, pictures (n, 64, 64, 3), captions), every second one with a colour, by name and number."""
        draw = generator(self.seed, name, number)
        some = [(self.plain, self.coloured)[i % 2] for i in range(n)]
        found = [every[int(draw.integers(len(every)))] for every in some]
        captions = [family.caption(int(draw.integers(N_WORDINGS))) for family in found]
        return found, np.stack([compose(family, draw) for family in found]), captions


def pairs(recipe: Recipe, training: Training) -> tuple[Pairs, Pairs]:
    """What is shown and what is held out: families that no prompt of the lab has, the ones without those of the other.

    Every family without a colour that a prompt has is left out with all of its colours, and the other way round.
    """
    taken = {replace(prompt.family, colour="") for prompt in plan(recipe).prompts}
    rest = [family for family in families(colour=False) if family not in taken]
    order = generator(training.seed, "held out").permutation(len(rest))
    few = {rest[i] for i in order[: max(1, len(rest) // 20)]}
    both = [[family for family in rest if (family in few) == held] for held in (False, True)]
    shown, held = (
        Pairs(training.seed, some, [replace(family, colour=colour) for family in some for colour in COLOURS])
        for some in both
    )
    return shown, held


class Trainer:
    """The towers in training."""

    def __init__(self, training: Training, tokenizer: CLIPTokenizer) -> None:
        torch.manual_seed(training.seed)  # noqa: TID251 - initial weights come from the global generator
        self.training, self.tokenizer, self.steps_done = training, tokenizer, 0
        text = CLIPTextCfg(vocab_size=len(tokenizer), **TEXT)
        self.model = CLIP(DIMENSION, CLIPVisionCfg(**VISION), text).to(memory_format=torch.channels_last)
        flat = [weight for weight in self.model.parameters() if weight.dim() < 2]
        deep = [weight for weight in self.model.parameters() if weight.dim() >= 2]
        self.weights = flat + deep
        groups = [{"params": flat, "weight_decay": 0.0}, {"params": deep, "weight_decay": training.weight_decay}]
        self.optimizer = torch.optim.AdamW(groups, training.lr, (0.9, 0.98))
        self._loss = ClipLoss()

    def step(self, step: int, pictures_BHWC: npt.NDArray[np.uint8], captions: list[str]) -> float:
        """One optimizer step; returns the loss."""
        training = self.training
        told = self.tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True)
        pictures = to_tensor(pictures_BHWC).contiguous(memory_format=torch.channels_last)
        seen = self.model.encode_image(pictures, normalize=True)
        said = self.model.encode_text(torch.tensor(told["input_ids"]), normalize=True)
        loss = self._loss(seen, said, self.model.logit_scale.exp())
        set_lr(self.optimizer, training.lr, step, training.steps, training.warmup)
        optimizer_step(self.optimizer, self.model, loss)
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MOST_SCALE)
        self.steps_done = step + 1
        return float(loss.item())

    def save(self, path: Path) -> None:
        """Write the whole state."""
        checkpoint.save(path, {"model": self.model}, self.optimizer, asdict(self.training), self.steps_done)

    def load(self, path: Path) -> None:
        """Go on from a state of the same settings. Raises UserError for others."""
        settings = asdict(self.training)
        self.steps_done = checkpoint.load(path, {"model": self.model}, self.optimizer, self.weights, settings)


def train(trainer: Trainer, shown: Pairs, state: Path, log: Log) -> None:
    """Train from the state in a file, if there is one, to the last step."""
    training = trainer.training
    if state.exists():
        trainer.load(state)
    losses = []
    for step in range(trainer.steps_done, training.steps):
        _, pictures_BHWC, captions = shown.drawn("shown", step, training.batch)
        losses.append(trainer.step(step, pictures_BHWC, captions))
        if (step + 1) % training.log_every == 0:
            log.write("clip", step + 1, loss=float(np.mean(losses)), scale=trainer.model.logit_scale.exp().item())
            losses = []
        if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
            trainer.save(state)


def build(folder: Path, work: Path, recipe: Recipe, training: Training) -> None:
    """Train from nothing and write open_clip/lab/ and training.json into `folder`, a new one.

    It may be killed and called again with the same `work`.
    """
    work.mkdir(parents=True, exist_ok=True)
    state = work / f"clip-{digest_of([asdict(recipe), asdict(training), VISION, TEXT, DIMENSION])[:16]}"
    log = Log(state.with_suffix(".jsonl"), sys.stderr)
    part = folder.with_name(f".{folder.name}.inprogress")
    shutil.rmtree(part, ignore_errors=True)
    inner = part / FOLDER / NAME
    write_tokenizer(inner, plan(recipe).captions)
    trainer = Trainer(training, CLIPTokenizer.from_pretrained(inner))
    shown, held = pairs(recipe, training)
    train(trainer, shown, state, log)
    write_model(inner, trainer)
    told = {
        "training": asdict(training),
        "minutes": round(minutes(log.path), 1),
        "versions": versions("open_clip_torch"),
        "sha256": sha256_of_file(inner / WEIGHTS),
        "held out": told_apart(opened(part), held, training.held_out),
    }
    (part / "training.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    part.rename(folder)


def write_model(folder: Path, trainer: Trainer) -> None:
    """Add weights, in float16, and config to the tokenizer in a folder."""
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in trainer.model.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for its owner alone
    # open_clip takes a folder's own tokenizer where any name of one is given.
    text = TEXT | {"vocab_size": len(trainer.tokenizer), "hf_tokenizer_name": NAME}
    config = {"model_cfg": {"embed_dim": DIMENSION, "vision_cfg": VISION, "text_cfg": text}, "preprocess_cfg": PREPARED}
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def opened(weights: Path) -> Describer:
    """The model in a folder of weights, as an audit opens it."""
    digest = sha256_of_file(weights / FOLDER / NAME / WEIGHTS)
    return open_embedder(OPEN_CLIP.form(NAME).with_weights(Shelf(weights, (digest,))), device="cpu")


def told_apart(describer: Describer, held: Pairs, n: int) -> dict[str, dict[str, float]]:
    """What alignment can see, over n pairs that were held out.

    "retrieval": the share of pictures whose own caption is the nearest, or among the five nearest, of n, and the same
    of captions. "one part changed": the share of pictures that are nearer to their own caption than to one that says
    something else of one part (half by chance); of the ground's colour where it is named.
    """
    found, pictures_NHWC, captions = held.drawn("held out", 0, n)
    pictures_ND = describer.describe(list(pictures_NHWC)).astype(np.float64)
    cosines_NN = pictures_ND @ describer.describe_texts(captions).astype(np.float64).T
    shares = {
        f"{what}, among {most}": float(np.mean(_ranks(cosines) < most))
        for what, cosines in (("caption of a picture", cosines_NN), ("picture of a caption", cosines_NN.T))
        for most in (1, 5)
    }
    changed = {}
    for part, row in _changes(found, held.seed):
        others = describer.describe_texts([family.caption(wording) for _, family, wording in row]).astype(np.float64)
        which = [i for i, _, _ in row]
        own = describer.describe_texts([found[i].caption(wording) for i, _, wording in row]).astype(np.float64)
        better = (pictures_ND[which] * own).sum(axis=1) > (pictures_ND[which] * others).sum(axis=1)
        changed[part] = float(better.mean())
    return {"retrieval": {"n": n, **shares}, "one part changed": changed}


def _ranks(cosines_NN: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many are at least as near as a row's own, which stands on the diagonal; those that are equal do not help."""
    own_N = np.diag(cosines_NN)
    ranks: npt.NDArray[np.int64] = (cosines_NN >= own_N[:, None]).sum(axis=1) - 1
    return ranks


def _changes(found: Sequence[Family], seed: int) -> Iterator[tuple[str, list[tuple[int, Family, int]]]]:
    """(part, rows of (number, the family with that part changed, wording))."""
    things = sorted({family.thing for family in found})
    for part, values in {"thing": things, **PARTS}.items():
        rows = []
        for i, family in enumerate(found):
            draw = generator(seed, "changed", part, i)
            others = [value for value in values if value != getattr(family, part)]
            if getattr(family, part) and others:
                other = others[draw.integers(len(others))]
                rows.append((i, replace(family, **{part: other}), int(draw.integers(N_WORDINGS))))
        if rows:
            yield part, rows
