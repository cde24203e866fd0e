"""Near-duplicate prompts as one family: MinHash finds who may be alike, shared letters decide who is.

Two prompts are alike if the sets of their 4-letter pieces, in normal form (dedup.py), share at least a threshold of
their union (Jaccard). Families are what alike pairs connect. Comparing all pairs is out of the question: prompts are
compared where they agree in a whole band of MinHash values (Broder 1997; bands as in Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3), which a pair at the threshold does with a probability of at least MIN_FOUND.

A new family joins the known one that it is alike to, of several the one of smallest id; known families never merge. The
outcome is the same for every order of the rows. One line in memory for each family: some 0.2 GB a million.

Shapes: N families, B bands, S pieces of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rensa import RMinHash

from sharpaudit.corpus.dedup import normal_text
from sharpaudit.corpus.ledger import Ledger

PIECE = 4
N_HASHES = 128
MIN_FOUND = 0.99
MAX_LEADERS = 64
"""Prompts of a band that the others are compared with: many that agree in a band and are all unlike are a template, and
comparing each with each would take for ever."""
Hashes = npt.NDArray[np.uint64]
_SPREAD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)
_ITEMS = """
    SELECT hex_of(i.family) AS family, i.prompt, i.known FROM (
        SELECT a.family, r.prompt, false AS known
        FROM (SELECT family, min(ord) AS ord FROM asked
              WHERE NOT named AND family NOT IN (SELECT family FROM known) GROUP BY family) a
        JOIN rows r USING (ord)
        UNION ALL SELECT family, arg_min(prompt, id), true FROM known GROUP BY family) i
    ORDER BY i.family"""


def join_near_duplicates(ledger: Ledger, threshold: float) -> None:
    """Give families of `asked` that are alike one id: that of a known family, or the smallest of theirs.

    Families that the user named stay as they are. threshold: above 0, up to 1.
    """
    names: list[str] = []
    known: list[bool] = []
    parts_NB = []
    for part in ledger.stream(_ITEMS):
        names += part["family"].to_pylist()
        known += part["known"].to_pylist()
        parts_NB.append(band_keys(_texts(part), threshold))
    if not names:
        return
    buckets = list(_buckets(np.concatenate(parts_NB)))
    known_N = np.array(known)
    into = _families(buckets, _pieces_of(ledger, buckets, len(names)), known_N, threshold)
    moved = [(names[i], names[j]) for i, j in enumerate(into) if i != j]
    columns = {"family": [name for name, _ in moved], "target": [target for _, target in moved]}
    schema = pa.schema({"family": pa.string(), "target": pa.string()})
    ledger.create("alike", schema, ids=("family", "target"))
    ledger.insert("alike", pa.table(columns, schema))
    ledger.run("UPDATE asked SET family = alike.target FROM alike WHERE asked.family = alike.family AND NOT named")


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


def _buckets(keys_NB: Hashes) -> Iterator[npt.NDArray[np.int64]]:
    """Of every band the groups of families that agree in it, each in ascending order."""
    for keys_N in keys_NB.T:
        order = np.argsort(keys_N, kind="stable")
        changes = np.flatnonzero(np.diff(keys_N[order])) + 1
        edges = np.concatenate([[0], changes, [len(order)]])
        for i in np.flatnonzero(np.diff(edges) > 1):
            yield order[edges[i] : edges[i + 1]]


def _pieces_of(ledger: Ledger, buckets: Sequence[npt.NDArray[np.int64]], n: int) -> dict[int, Hashes]:
    """The pieces of the families that stand in a bucket, each once and sorted, by the number of the family."""
    met_N = np.zeros(n, bool)
    for bucket in buckets:
        met_N[bucket] = True
    found, first = {}, 0
    for part in ledger.stream(_ITEMS):
        chosen = np.flatnonzero(met_N[first : first + part.num_rows])
        if len(chosen):
            pieces, offsets = pieces_of(_texts(part.take(chosen)))
            for i, number in enumerate(chosen.tolist()):
                found[first + number] = np.unique(pieces[int(offsets[i]) : int(offsets[i + 1])])
        first += part.num_rows
    return found


def _families(
    buckets: Sequence[npt.NDArray[np.int64]],
    pieces: dict[int, Hashes],
    known_N: npt.NDArray[np.bool_],
    threshold: float,
) -> list[int]:
    """The number of the family that each one ends in."""
    parent = list(range(len(known_N)))
    # The smallest known family that a new one is alike to.
    anchor: dict[int, int] = {}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for bucket in buckets:
        left = bucket
        for _ in range(MAX_LEADERS):
            if len(left) < 2:
                break
            leader, others = int(left[0]), left[1:]
            alike = _jaccard(pieces[leader], [pieces[int(i)] for i in others]) >= threshold
            for i in map(int, others[alike]):
                if known_N[leader] or known_N[i]:
                    new, old = (i, leader) if known_N[leader] else (leader, i)
                    if not known_N[new]:
                        anchor[new] = min(old, anchor.get(new, old))
                else:
                    low, high = sorted((root(leader), root(i)))
                    parent[high] = low
            # Known families connect nothing: what is alike to one has still to meet the others.
            left = others if known_N[leader] else others[~alike | known_N[others]]
    for new, old in list(anchor.items()):
        anchor[root(new)] = min(old, anchor.get(root(new), old))
    return [anchor.get(root(i), root(i)) for i in range(len(known_N))]


def _jaccard(pieces: Hashes, others: Sequence[Hashes]) -> npt.NDArray[np.float64]:
    """Shared pieces over all pieces, of one text with each of the others."""
    sizes = np.array([len(other) for other in others])
    flat = np.concatenate(others)
    at = np.minimum(np.searchsorted(pieces, flat), len(pieces) - 1)
    shared = np.add.reduceat((pieces[at] == flat).astype(np.int64), np.concatenate([[0], np.cumsum(sizes)[:-1]]))
    overlap: npt.NDArray[np.float64] = shared / (len(pieces) + sizes - shared)
    return overlap
