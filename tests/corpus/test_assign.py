from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharpaudit.corpus.assign import USES, assign
from sharpaudit.corpus.dedup import family_id, prompt_id
from sharpaudit.corpus.rows import Source
from sharpaudit.corpus.scratch import scratch
from sharpaudit.denoisers.base import Tokens
from sharpaudit.errors import Status, UserError
from sharpaudit.tables.schemas import CORPUS, ORIGINS
from tests.support.strategies import texts

FEW = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Words:
    """A tokenizer of words, of which it keeps 75 between a start and an end."""

    digest = "words"

    def tokens(self, prompts):
        return [self._of(prompt.split(" ")) for prompt in prompts]

    def _of(self, words):
        kept = hashlib.sha256(" ".join(words[:75]).encode()).hexdigest()
        return Tokens(len(words) + 2, len(words) > 75, kept[:32])


def source(folder: Path, use: str, prompts: list[str | None], **how) -> Source:
    path = folder / f"{use}.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    return Source(f"{use}:{path.name}", use, path, **how)


@dataclass(frozen=True)
class Made:
    """What a call gave, read to its end."""

    origins: pa.Table
    corpus: dict[str, pa.Table]
    statuses: dict[str, int]
    represented: list[tuple[str, str]]


def assigned(
    todo, known: Sequence[pa.Table] = (), seed: int = 0, near: float | None = None, represented=(), size: int = 7
):
    """size: rows of a table, which must change nothing."""
    with tempfile.TemporaryDirectory() as folder, scratch(Path(folder) / "rows") as rows:
        made = assign(todo, known, Words(), seed, rows, near, represented)
        parts = list(made.origins(size))
        assert [part.num_rows for part in parts[:-1]] == [size] * (len(parts) - 1)
        corpus = {role: pa.concat_tables(list(made.corpus(role, size))) for role in made.counts}
        assert {role: table.num_rows for role, table in corpus.items()} == made.counts
        return Made(
            pa.concat_tables(parts or [ORIGINS.schema.empty_table()]), corpus, made.statuses(USES), made.represented()
        )


def ingested(
    folder: Path, known: Sequence[pa.Table] = (), seed: int = 0, near: float | None = None, represented=(), **prompts
) -> Made:
    todo = [(source(folder, use, values), 0, None) for use, values in prompts.items()]
    return assigned(todo, known, seed, near, represented)


def numbered(word: str, n: int = 30) -> list[str]:
    return [f"{word} {i}" for i in range(n)]


def held(made: Made, role: str) -> list[str]:
    return made.corpus[role].column("prompt").to_pylist() if role in made.corpus else []


def statuses(made: Made, use: str) -> list[str]:
    mine = pc.starts_with(made.origins.column("source"), f"{use}:")
    return made.origins.filter(mine).column("status").to_pylist()


def knows(*made: Made) -> list[pa.Table]:
    tables = [table for one in made for table in one.corpus.values()]
    return [table.set_column(1, "prompt", table["prompt"].cast(pa.binary())) for table in tables]


def by_key(made: Made) -> dict[str, list[dict]]:
    return {role: sorted(table.to_pylist(), key=lambda row: row["prompt_id"]) for role, table in made.corpus.items()}


def consistent(made: Made, rows: int, known: Sequence[pa.Table] = ()) -> None:
    """What holds after every call: all rows, valid tables, one role per prompt, families on one side."""
    before = [row for table in known for row in table.to_pylist()]
    known_ids = {row["prompt_id"] for row in before}
    made.origins.validate(full=True)
    assert made.origins.schema.equals(ORIGINS.schema, check_metadata=True)
    assert made.origins.num_rows == rows
    corpus = [row for table in made.corpus.values() for row in table.to_pylist()]
    for table in made.corpus.values():
        table.validate(full=True)
        assert table.schema.equals(CORPUS.schema, check_metadata=True)
    ids = [row["prompt_id"] for row in corpus]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & known_ids
    side = {"audit": 0, "positive_control": 0, "fit": 1, "calibration": 2}
    sides = {(row["family_id"], side[row["role"]]) for row in [*before, *corpus]}
    assert max(Counter(family for family, _ in sides).values()) == 1
    for row in made.origins.to_pylist():
        accepted = row["status"] == Status.OK
        assert accepted == (row["prompt_id"] is not None) == (row["reason"] is None)
        assert not accepted or row["prompt_id"] in {*ids, *known_ids}


@FEW
@given(audit=st.lists(texts(), min_size=1, max_size=12), harmless=st.lists(texts(), max_size=12))
def test_hostile_corpora_stay_consistent(tmp_path, audit, harmless):
    # Shared and repeated prompts on purpose.
    pool = [*harmless, *audit[:3], *audit[:3], *numbered("harmless"), *numbered("Harmless!")]
    made = ingested(tmp_path, audit=[*audit, None, " ", *audit], harmless=pool, positive_control=[audit[0], "control"])
    consistent(made, 2 * len(audit) + 2 + len(pool) + 2)
    assert held(made, "audit") == list(dict.fromkeys(audit))


@FEW
@given(seed=st.integers(0, 99))
def test_permuted_and_duplicated_corpora_give_equal_tables(tmp_path, seed):
    audit, harmless = [*numbered("a"), *numbered("A!", 9)], [*numbered("h"), *numbered("H?", 20), *numbered("a", 5)]
    once = by_key(ingested(tmp_path, audit=audit, harmless=harmless, positive_control=["x", "a 1"]))
    draw = random.Random(seed)
    audit, harmless = audit + draw.choices(audit, k=9), harmless + draw.choices(harmless, k=9)
    draw.shuffle(audit)
    draw.shuffle(harmless)
    assert by_key(ingested(tmp_path, harmless=harmless, positive_control=["a 1", "x", "x"], audit=audit)) == once


def test_order_is_first_appearance_and_duplicates_repeat_the_id(tmp_path):
    made = ingested(tmp_path, audit=["b", "a", "b", "c", "a"])
    assert held(made, "audit") == ["b", "a", "c"]
    assert made.origins.column("prompt_id").to_pylist() == [prompt_id(p) for p in "babca"]


def test_rejected_rows_keep_their_place_and_reason(tmp_path):
    made = ingested(tmp_path, audit=["a", None, "  ", "b"])
    assert statuses(made, "audit") == ["ok", "missing", "empty", "ok"]
    assert made.origins.column("reason").to_pylist() == [None, Status.MISSING.describe(), Status.EMPTY.describe(), None]


def test_audit_wins_the_family(tmp_path):
    fit, calibration = [*numbered("f"), "A cat!"], [*numbered("c"), "a dog", "a CONTROL"]
    made = ingested(
        tmp_path, fit=fit, calibration=calibration, audit=["a cat", "a dog"], positive_control=["a control", "a dog"]
    )
    assert statuses(made, "fit") == ["ok"] * 30 + ["in_audit"]
    assert statuses(made, "calibration") == ["ok"] * 30 + ["in_audit"] * 2
    assert statuses(made, "positive_control") == ["ok", "in_audit"]
    consistent(made, 31 + 32 + 2 + 2)


def test_a_harmless_file_is_halved_by_family(tmp_path):
    families = numbered("h", 25)
    made = ingested(tmp_path, harmless=[*families, *(f"{h.upper()}!" for h in families)])
    fit = {family_id(p) for p in held(made, "fit")}
    assert (len(held(made, "fit")), len(fit), len(held(made, "calibration"))) == (26, 13, 12)
    assert statuses(made, "harmless").count("family_represented") == 12
    other = ingested(tmp_path, seed=1, harmless=families)
    assert set(held(other, "fit")) != set(held(made, "fit")) & set(families)


def test_calibration_holds_a_random_member_of_each_family(tmp_path):
    lower, upper = numbered("c", 40), [c.upper() for c in numbered("c", 40)]
    made = ingested(tmp_path, fit=numbered("f"), calibration=[*lower, *upper])
    chosen = held(made, "calibration")
    assert sorted(c.lower() for c in chosen) == sorted(lower)
    assert 5 < sum(c in lower for c in chosen) < 35
    assert chosen == [c for c in [*lower, *upper] if c in chosen]


def test_fit_and_calibration_may_not_share_a_family(tmp_path):
    with pytest.raises(UserError, match=r"share 2 prompt families, for instance \"F 1\.\""):
        ingested(tmp_path, fit=numbered("f"), calibration=[*numbered("c"), "F 1.", "f 2"])
    # A shared family that is audited stands in neither.
    ingested(tmp_path, fit=numbered("f"), calibration=[*numbered("c"), "F 1."], audit=["f 1"])


def test_too_few_harmless_prompts_are_refused_with_counts(tmp_path):
    with pytest.raises(UserError, match=r"9 fit and 8 calibration prompts are left of 20 rows \(3 in_audit\)"):
        ingested(tmp_path, audit=numbered("h", 3), harmless=numbered("h", 20))
    with pytest.raises(UserError, match="0 calibration"):
        ingested(tmp_path, audit=["c"], fit=numbered("f"), calibration=["c"])
    ingested(tmp_path, audit=["x"], harmless=numbered("h", 20))


@FEW
@given(cut=st.integers(1, 39), clash=st.booleans())
def test_an_audit_may_grow(tmp_path, cut, clash):
    late = ["H 3!", "a 0", "A 1", "new"] if clash else ["a 0", "A 1", "new"]
    audit = source(tmp_path, "audit", [*numbered("a", 40), *late])
    harmless = source(tmp_path, "harmless", numbered("h"))
    first = assigned([(audit, 0, cut), (harmless, 0, None)])
    known = knows(first)
    second = assigned([(audit, cut, None)], known)
    consistent(second, 40 + len(late) - cut, known)
    whole = assigned([(audit, 0, None)])
    both = held(first, "audit") + held(second, "audit")
    assert both == [p for p in held(whole, "audit") if p != "H 3!"]
    assert statuses(second, "audit").count("in_calibration") == clash


def test_reading_again_what_is_known_adds_nothing(tmp_path):
    prompts = {
        "audit": numbered("a"),
        "positive_control": ["x", "a 1"],
        "harmless": [*numbered("h"), *numbered("H!"), "a 2"],
    }
    first = ingested(tmp_path, seed=1, **prompts)
    again = ingested(tmp_path, knows(first), seed=0, **prompts)
    assert again.corpus == {}
    assert again.origins.equals(first.origins)


def test_a_late_audited_prompt_that_is_a_control_keeps_its_role(tmp_path):
    first = ingested(tmp_path, audit=["a"], positive_control=["x"])
    second = ingested(tmp_path, knows(first), audit=["x"])
    assert second.corpus == {}
    assert second.origins.column("prompt_id").to_pylist() == [prompt_id("x")]


@pytest.mark.parametrize(("n_tokens", "truncated"), [(76, False), (77, False), (78, True), (500, True)])
def test_tokens_are_counted_and_truncation_recorded(tmp_path, n_tokens, truncated):
    prompts = [" ".join(["word"] * (n_tokens - 3) + [end]) for end in ("one", "two")]
    rows = ingested(tmp_path, audit=prompts).corpus["audit"].to_pylist()
    assert [(r["n_tokens"], r["truncated"]) for r in rows] == [(n_tokens, truncated)] * 2
    assert (rows[0]["model_input_id"] == rows[1]["model_input_id"]) == truncated
    assert [r["prompt"] for r in rows] == prompts


def test_ids_and_labels_pass_through(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,id,lang,kind\na,7,en,x\na,8,de,y\n,9,fr,z\n")
    how = {"id_column": "id", "labels": ("lang", "kind")}
    made = assigned([(Source("audit:p.csv", "audit", path, **how), 0, None)])
    rows = made.origins.to_pylist()
    assert [r["external_id"] for r in rows] == ["7", "8", "9"]
    assert [dict(r["labels"]) for r in rows][2] == {"lang": "fr", "kind": "z"}
    assert made.origins.schema.field("labels").type == pa.map_(pa.string(), pa.string())


def test_a_style_is_that_of_the_first_row_and_may_be_missing(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,style\na,photo\nb,\na,sketch\n")
    (styled, plain) = (
        assigned([(Source("audit:p.csv", "audit", path, style_column=column), 0, None)]) for column in ("style", None)
    )
    assert styled.corpus["audit"].column("style").to_pylist() == ["photo", None]
    assert plain.corpus["audit"].column("style").to_pylist() == [None, None]


def test_a_named_family_binds_prompts_together(tmp_path):
    path = tmp_path / "h.csv"
    path.write_text("prompt,f\n" + "".join(f"prompt {i},{i // 3}\n" for i in range(60)))
    made = assigned([(Source("harmless:h", "harmless", path, family_column="f"), 0, None)])
    assert (len(held(made, "fit")), len(held(made, "calibration"))) == (30, 10)
    consistent(made, 60)


def test_the_audited_row_names_the_family_whatever_the_order_of_files(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,f\nh 1,pets\n")
    audit = (Source("audit:a", "audit", path, family_column="f"), 0, None)
    harmless = (source(tmp_path, "harmless", numbered("h")), 0, None)
    made = assigned([harmless, audit])
    assert made.corpus["audit"].column("family_id").to_pylist() == [family_id("h 1", "pets")]
    assert by_key(made) == by_key(assigned([audit, harmless]))
