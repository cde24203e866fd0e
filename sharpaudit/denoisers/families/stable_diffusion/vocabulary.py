"""The vocabulary and merges of a CLIP tokenizer: whether they can be read, and are of one another.

A byte-pair encoding joins two pieces into one, pair by pair; both pieces and what they give must have their id. The
tokenizers library says of a file that is amiss neither which it is nor where, and of some ends in a panic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sharpaudit.denoisers.files import read_json, reading
from sharpaudit.errors import UserError, printable


def require_vocabulary(folder: Path, files: Iterable[str]) -> None:
    """Read the tokenizer's `files`, relative to `folder`. Raises UserError naming one that cannot be parsed."""
    parsed = {Path(name).name: read_json(folder / name) for name in files if name.endswith(".json")}
    place = folder / "tokenizer"
    if "tokenizer.json" in parsed:
        _require_model(place / "tokenizer.json", parsed["tokenizer.json"].get("model"))
    else:
        _require_ids(place / "vocab.json", parsed["vocab.json"])
        _require_pairs(place / "merges.txt", _lines(place / "merges.txt"), parsed["vocab.json"])


def _require_model(path: Path, model: Any) -> None:
    if not isinstance(model, dict) or model.get("type") not in (None, "BPE"):
        kind = model.get("type") if isinstance(model, dict) else model
        raise UserError(f"{printable(str(path))}: model = {printable(repr(kind), 80)}: a BPE model is expected")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise UserError(f"{printable(str(path))}: model: vocab and merges are expected in it")
    _require_ids(path, vocabulary)
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    _require_pairs(path, ((f"model.merges {i}", pair) for i, pair in enumerate(pairs)), vocabulary)


def _require_ids(path: Path, vocabulary: Mapping[str, Any]) -> None:
    for token, number in vocabulary.items():
        if type(number) is not int or not 0 <= number < 2**32:
            raise UserError(
                f"{printable(str(path))}: {printable(token)} has the id {printable(repr(number), 80)}: whole numbers "
                "from 0 on are expected"
            )


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Place and pieces of every line of a merges.txt but those that name its version."""
    try:
        with reading(path):
            text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(str(path))}: not UTF-8 text: {error.reason} at byte {error.start:,}") from error
    for i, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if not line.startswith("#version"):
            yield f"line {i:,}", line.removesuffix("\r").split(" ")


def _require_pairs(path: Path, pairs: Iterable[tuple[str, Any]], vocabulary: Mapping[str, Any]) -> None:
    for place, pair in pairs:
        shown = f"{printable(str(path))}: {place}"
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(piece, str) for piece in pair):
            raise UserError(f"{shown}: two pieces with a space between are expected, not {printable(repr(pair), 80)}")
        for piece in (*pair, "".join(pair)):
            if piece not in vocabulary:
                raise UserError(
                    f"{shown}: {printable(repr(piece), 80)} is not in the vocabulary; it is that of another tokenizer, "
                    "or one of the two was cut short"
                )
