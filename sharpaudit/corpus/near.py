"""Near-duplicate prompts as one family: MinHash finds who may be alike, shared letters decide who is.

Two prompts are alike if the sets of their 4-letter pieces, in normal form (dedup.py), share at least a threshold of
their union (Jaccard). Families are what alike pairs connect. Comparing all pairs is out of the question: prompts are
compared where they agree in a whole band of MinHash values (Broder 1997; bands as in Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3), which a pair at the threshold does with a probability of at least MIN_FOUND.

What is there already is an anchor: prompts of earlier calls, also those that another stands for in the calibration set,
and prompts whose family the user named. A new family joins that of an anchor that it is alike to, of several the one of
smallest id; families of anchors never merge. The outcome is the same for every order of the rows. In memory are the
MinHash keys of all families and the pieces of those that agree in a band: some 0.6 GB a million short prompts.

Shapes: N families and anchors, B bands, S pieces of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rensa import RMinHash

from sharpaudit.corpus.dedup import normal_text
from sharpaudit.corpus.scratch import Scratch

PIECE = 4
N_HASHES = 128
MIN_FOUND = 0.99
MAX_LEADERS, MAX_COMPARISONS = 64, 20_000_000
"""Of a band: prompts unlike all before them that the others are compared with, and comparisons in all. Many that agree
in a band and are all unlike are a template, and comparing each with each would take for ever."""
LETTERS = 4_000_000
"""Of the texts that are cut into pieces at a time."""
Hashes = npt.NDArray[np.uint64]
_SPREAD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)
ANCHORS = pa.schema({"family": pa.string(), "prompt": pa.binary()})
_ITEMS = """
    SELECT hex_of(i.family) AS family, i.prompt, i.anchor FROM (
        SELECT a.family, r.prompt, false AS anchor
        FROM (SELECT family, min(ord) AS ord FROM asked
              WHERE NOT named AND family NOT IN (SELECT family FROM anchors) GROUP BY family) a
        JOIN rows r USING (ord)
        UNION ALL SELECT family, prompt, true FROM anchors) i
    ORDER BY i.family, i.prompt"""


def join_near_duplicates(scratch: Scratch, threshold: float, represented: Sequence[tuple[str, str]]) -> None:
    """Give families of `asked` that are alike one id: that of an anchor, or the smallest of theirs.

    threshold: above 0, up to 1. represented: (family, prompt) of earlier calls that the corpus does not hold.
    """
    scratch.create("anchors", ANCHORS, ids=("family",))
    families = [family for family, _ in represented]
    prompts = [prompt.encode() for _, prompt in represented]
    scratch.insert("anchors", pa.table({"family": families, "prompt": prompts}, ANCHORS))
    scratch.run("""INSERT INTO anchors SELECT family, prompt FROM known
        UNION ALL SELECT a.family, r.prompt FROM asked a JOIN rows r USING (ord) WHERE a.named""")
    names: list[str] = []
    anchors: list[bool] = []
    parts_NB = []
    for part in scratch.stream(_ITEMS):
        names += part["family"].to_pylist()
        anchors += part["anchor"].to_pylist()
        parts_NB += [band_keys(texts, threshold) for texts in _in_parts(_texts(part))]
    if not names:
        return
    keys_NB = np.concatenate(parts_NB)
    parts_NB.clear()
    buckets = list(_buckets(keys_NB))
    into = _families(buckets, _pieces_of(scratch, buckets, len(names)), np.array(anchors), threshold)
    moved = [(names[i], names[j]) for i, j in enumerate(into) if names[i] != names[j]]
    columns = {"family": [name for name, _ in moved], "target": [target for _, target in moved]}
    schema = pa.schema({"family": pa.string(), "target": pa.string()})
    scratch.create("alike", schema, ids=("family", "target"))
    scratch.insert("alike", pa.table(columns, schema))
    scratch.run("UPDATE asked SET family = alike.target FROM alike WHERE asked.family = alike.family AND NOT named")


def rows_per_band(threshold: float) -> int:
    """As many as leave a pair at the threshold a probability of MIN_FOUND to agree in some band."""
    found = [r for r in range(1, N_HASHES + 1) if 1 - (1 - threshold**r) ** (N_HASHES // r) >= MIN_FOUND]
    return max(found, default=1)


def band_keys(texts: Sequence[str], threshold: float) -> Hashes:
    """A number for each text and band, equal where all MinHash values of the band are, with shape (N, B)."""
    pieces, offsets = pieces_of(texts)
    made = RMinHash.digest_matrix_from_flat_token_hashes(pieces, offsets, num_perm=N_HASHES, seed=0)
    r = rows_per_band(threshold)
    values_NBR = np.array(made.to_rows(), np.uint64)[:, : N_HASHES // r * r].reshape(len(texts), -1, r)
    keys_NB = np.zeros(values_NBR.shape[:2], np.uint64)
    for column_NB in np.moveaxis(values_NBR, 2, 0):
        keys_NB = _mixed(keys_NB * _SPREAD[0] + column_NB)
    return keys_NB


def pieces_of(texts: Sequence[str]) -> tuple[Hashes, Hashes]:
    """A hash of each piece of each text, one text after another, and where each begins: (sum S,) and (N + 1,)."""
    # A text shorter than a piece is one.
    padded = [text.ljust(PIECE, "\0") for text in texts]
    letters = np.frombuffer("".join(padded).encode("utf-32-le"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    text_of = np.repeat(np.arange(len(texts)), lengths)
    hashes = np.zeros(len(letters) - PIECE + 1, np.uint64)
    for i in range(PIECE):
        hashes += letters[i : len(letters) - PIECE + 1 + i] * _SPREAD[i]
    whole = text_of[: len(hashes)] == text_of[PIECE - 1 :]
    return _mixed(hashes[whole]), np.concatenate([[0], np.cumsum(lengths - PIECE + 1)]).astype(np.uint64)


def _mixed(values: Hashes) -> Hashes:
    """A bijection of 64 bits that spreads every bit (the end of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


def _texts(part: pa.Table) -> list[str]:
    prompts = [prompt.decode() for prompt in part["prompt"].to_pylist()]
    # Of punctuation alone nothing is left in normal form.
    return [normal_text(prompt) or prompt for prompt in prompts]


def _in_parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in parts of at most LETTERS letters, or of one text."""
    first = held = 0
    for i, text in enumerate(texts):
        if i > first and held + len(text) > LETTERS:
            yield texts[first:i]
            first, held = i, 0
        held += len(text)
    yield texts[first:]


def _buckets(keys_NB: Hashes) -> Iterator[npt.NDArray[np.int64]]:
    """Of every band the groups of families that agree in it, each in ascending order."""
    for keys_N in keys_NB.T:
        order = np.argsort(keys_N, kind="stable")
        changes = np.flatnonzero(np.diff(keys_N[order])) + 1
        edges = np.concatenate([[0], changes, [len(order)]])
        for i in np.flatnonzero(np.diff(edges) > 1):
            yield order[edges[i] : edges[i + 1]]


def _pieces_of(scratch: Scratch, buckets: Sequence[npt.NDArray[np.int64]], n: int) -> dict[int, Hashes]:
    """The pieces of the families that stand in a bucket, each once and sorted, by the number of the family."""
    met_N = np.zeros(n, bool)
    for bucket in buckets:
        met_N[bucket] = True
    found, first = {}, 0
    for part in scratch.stream(_ITEMS):
        chosen = np.flatnonzero(met_N[first : first + part.num_rows])
        numbers = iter((first + chosen).tolist())
        for texts in _in_parts(_texts(part.take(chosen))) if len(chosen) else ():
            pieces, offsets = pieces_of(texts)
            for a, b in pairwise(offsets.tolist()):
                found[next(numbers)] = np.unique(pieces[a:b])
        first += part.num_rows
    return found


def _families(
    buckets: Sequence[npt.NDArray[np.int64]],
    pieces: dict[int, Hashes],
    anchor_N: npt.NDArray[np.bool_],
    threshold: float,
) -> list[int]:
    """The number of the family that each one ends in."""
    parent = list(range(len(anchor_N)))
    # The smallest anchor that a new family is alike to.
    anchor: dict[int, int] = {}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for bucket in buckets:
        for i, j in _alike(bucket, pieces, anchor_N, threshold):
            if anchor_N[i] or anchor_N[j]:
                new, old = (j, i) if anchor_N[i] else (i, j)
                anchor[new] = min(old, anchor.get(new, old))
            else:
                low, high = sorted((root(i), root(j)))
                parent[high] = low
    for new, old in list(anchor.items()):
        anchor[root(new)] = min(old, anchor.get(root(new), old))
    return [anchor.get(root(i), root(i)) for i in range(len(anchor_N))]


def _alike(
    bucket: npt.NDArray[np.int64], pieces: dict[int, Hashes], anchor_N: npt.NDArray[np.bool_], threshold: float
) -> Iterator[tuple[int, int]]:
    """Alike pairs of a bucket that connect what all alike pairs connect; none of two anchors.

    A prompt that was found alike leads in its turn, so that whoever is alike to it alone is met too. Anchors connect
    nothing, so they lead by themselves and are met by everyone.
    """
    queue: list[int] = []
    left, n_leaders, compared = bucket, 0, 0
    while len(left) and compared < MAX_COMPARISONS:
        if queue:
            leader = queue.pop()
        elif n_leaders < MAX_LEADERS:
            leader, left, n_leaders = int(left[0]), left[1:], n_leaders + 1
        else:
            return
        if not len(left):
            return
        compared += len(left)
        alike = _jaccard(pieces[leader], [pieces[i] for i in left.tolist()]) >= threshold
        alike &= ~(anchor_N[left] & anchor_N[leader])
        yield from ((leader, i) for i in left[alike].tolist())
        if not anchor_N[leader]:
            absorbed = alike & ~anchor_N[left]
            queue += left[absorbed].tolist()
            left = left[~absorbed]


def _jaccard(pieces: Hashes, others: Sequence[Hashes]) -> npt.NDArray[np.float64]:
    """Shared pieces over all pieces, of one text with each of the others."""
    sizes = np.array([len(other) for other in others])
    flat = np.concatenate(others)
    at = np.minimum(np.searchsorted(pieces, flat), len(pieces) - 1)
    shared = np.add.reduceat((pieces[at] == flat).astype(np.int64), np.concatenate([[0], np.cumsum(sizes)[:-1]]))
    overlap: npt.NDArray[np.float64] = shared / (len(pieces) + sizes - shared)
    return overlap
