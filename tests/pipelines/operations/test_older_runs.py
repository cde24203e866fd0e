"""Runs outlive releases: one that another version made is opened, verified and never gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

import sharpaudit
from pipelines.cli import cli
from pipelines.flow.binding import require_own
from pipelines.operations.prune import prune
from pipelines.operations.replay import replay_prompt
from pipelines.operations.status import describe
from pipelines.operations.verify import examine, faults
from sharpaudit.errors import IntegrityError, UserError
from sharpaudit.evidence.keys import make_key, read_public, read_signer
from sharpaudit.evidence.seal import MANIFEST, evidence, sha256_of
from sharpaudit.plugs import STAGES
from sharpaudit.tables import query as door
from sharpaudit.tables import reading
from sharpaudit.tables.declared import described, of_version_4, rebuilt
from sharpaudit.tables.query import materialise, query
from sharpaudit.tables.reading import current_files, open_connection
from sharpaudit.tables.records import checksummed, read_checksummed
from sharpaudit.tables.runs import RUN_VERSION, RunFolder
from sharpaudit.tables.schemas import RUN_TABLES, SCORES, schema_of
from tests.support.golden import FIRST, todays, unpacked
from tests.support.stranger import ADDED, MISTAKEN

VERSIONS = range(FIRST, RUN_VERSION + 1)
FINDINGS = "select prompt_id, n_copies, best_similarity, value, p_value from findings order by all"
NOT_MADE_AGAIN = "NOT made again from the tables, and so not checked"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {number: unpacked(number, tmp_path_factory.mktemp(f"version-{number}")) for number in VERSIONS}


@pytest.fixture(params=VERSIONS)
def audits(request: pytest.FixtureRequest, kept: dict[int, Path], tmp_path: Path) -> Path:
    """Each of them in another place, to change at will."""
    return Path(shutil.copytree(kept[request.param], tmp_path / "moved"))


@pytest.fixture
def older(kept: dict[int, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept[FIRST] / "run", tmp_path / "older"))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """This program as it may be one day: with another stage and its table, and another column of one that is there."""
    wider = replace(SCORES, schema=schema_of("scores", 1, [*SCORES.schema, pa.field("seconds", pa.float64())]))
    ours = [wider if own.name == "scores" else own for own in RUN_TABLES]
    monkeypatch.setattr(door, "RUN_TABLES", (*ours, ADDED))
    monkeypatch.setattr(STAGES["score"], "table", wider, raising=False)
    monkeypatch.setitem(STAGES._own, "unlearn", "nowhere:UNLEARN")
    monkeypatch.setitem(
        STAGES._loaded,
        "unlearn",
        SimpleNamespace(
            name="unlearn",
            table=ADDED,
            upstream=("match",),
            report=None,
            views={},
            asked_by="",
            wanted=lambda _: True,
        ),
    )


def command(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], standalone_mode=False)


def rows(root: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_connection(RunFolder.open(root)) as connection:
        return query(connection, sql).rows


def told_findings(root: Path) -> list[tuple[Any, ...]]:
    """The findings as the report told them when it was made."""
    names = ("prompt_id", "n_copies", "best_similarity", "value", "p_value")
    facts = json.loads((root / "report/facts.json").read_bytes())
    return sorted(tuple(row[name] for name in names) for row in facts["findings"]["rows"])


def forge_seal(root: Path) -> None:
    (root / MANIFEST).write_text("".join(f"{sha256_of(root / n)}  {n}\n" for n in sorted(evidence(root))))


def opens(audits: Path) -> None:
    """What holds of each, whatever program reads it."""
    root = audits / "run"
    assert rows(root, FINDINGS) == told_findings(root) != []
    with sharpaudit.open_run(root) as run:
        assert run.view("risk").num_rows == 38
        assert run.view("prompt_ranks").num_rows == 130
        with pytest.raises(UserError, match="unlearning"):
            run.sql("from unlearning")
    found = describe(RunFolder.open(root))
    assert (found["state"], found["tables"]["scores"]["statuses"]["ok"]) == ("complete", 1290)
    assert "unlearning" not in found["tables"]
    verdict = examine(root, read_public(audits / "auditor.pem.pub"))
    assert verdict.faults == []


def test_a_run_of_every_version_opens_and_is_verified(audits: Path) -> None:
    opens(audits)
    own = RunFolder.open(audits / "run").record()["run_version"] == RUN_VERSION
    told = command("verify", audits / "run", "--public-key", audits / "auditor.pem.pub")
    assert told.return_value is None, told.output
    assert (NOT_MADE_AGAIN in told.output) != own
    assert ("identities and report agree" in told.output) == own
    assert "as required" in told.output


def test_it_also_opens_where_a_stage_a_table_and_a_column_were_added_since(audits: Path, later: None) -> None:
    opens(audits)
    root = audits / "run"
    assert rows(root, "select count(*), count(seconds), any_value(typeof(seconds)) from scores") == [
        (1430, 0, "DOUBLE")
    ]
    told = command("verify", root)
    assert told.return_value is None, told.output
    assert NOT_MADE_AGAIN in told.output


def test_going_on_with_it_is_one_line_and_changes_nothing(audits: Path, later: None) -> None:
    root, record = audits / "run", (audits / "run/run.json").read_bytes()
    for call in (
        ("run", todays(audits / "audit.toml"), "--out", root),
        ("run", todays(audits / "audit.toml"), "--out", root, "--update"),
        ("extend", root, audits / "testbed/prompts/known.csv"),
    ):
        told = command(*call)
        assert isinstance(told.exception, UserError), told.output
        assert "name a new folder, or go on with the version that made it (sharpaudit 0.1.0)" in str(told.exception)
        assert "\n" not in str(told.exception)
    assert (root / "run.json").read_bytes() == record
    assert faults(root) == []


def test_a_run_of_another_version_is_not_gone_on_with_by_this_one(older: Path) -> None:
    with pytest.raises(UserError, match=f"a run of version {FIRST}, this sharpaudit makes version {RUN_VERSION}"):
        require_own(RunFolder.open(older))


def test_what_a_version_to_come_made_is_refused_by_number(older: Path) -> None:
    tree = read_checksummed(older / "run.json")
    (older / "run.json").write_bytes(checksummed(tree | {"run_version": RUN_VERSION + 1}))
    reads = f"run version {RUN_VERSION + 1}; this sharpaudit reads versions {FIRST} to {RUN_VERSION}"
    for call in (RunFolder.open(older).record, lambda: sharpaudit.open_run(older), lambda: faults(older)):
        with pytest.raises(UserError, match=reads):
            call()


def edited(path: str, old: str, new: str) -> Callable[[Path], Path]:
    def edit(root: Path) -> Path:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))
        return root / path

    return edit


def facts_of(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Path]:
    def edit(root: Path) -> Path:
        path = root / "report/facts.json"
        facts = json.loads(path.read_bytes())
        change(facts)
        path.write_text(json.dumps(facts))
        return path

    return edit


def fewer_flagged(facts: dict[str, Any]) -> None:
    next(step for step in facts["flow"] if step["step"] == "flagged")["n"] -= 1


def less_alike(facts: dict[str, Any]) -> None:
    facts["findings"]["rows"][0]["best_similarity"] = 0.5


def one_fewer(facts: dict[str, Any]) -> None:
    facts["findings"]["total"] -= 1
    facts["findings"]["rows"].pop()


def another_level(facts: dict[str, Any]) -> None:
    facts["run"]["settings"]["triage"]["alpha"] = 0.01


def another_step(root: Path) -> Path:
    """In the record alone."""
    tree = read_checksummed(root / "run.json")
    tree["stages"]["score"]["fields"]["scores.step"] = 2.0
    (root / "run.json").write_bytes(checksummed(tree))
    return root / "config.toml"


TAMPERED = {
    "a setting": edited("config.toml", "alpha = 0.05", "alpha = 0.04"),
    "the seed": edited("config.toml", "seed = 4", "seed = 5"),
    "a setting left out": edited("config.toml", "components = 6\n", ""),
    "what is audited": edited("config.toml", 'id_column = "id"', 'id_column = "style"'),
    "the precision": edited("config.toml", 'dtype = "float32"', 'dtype = "float16"'),
    "a field of the record": another_step,
    "a count": facts_of(fewer_flagged),
    "a finding": facts_of(less_alike),
    "a finding left out": facts_of(one_fewer),
    "what the report says of settings": facts_of(another_level),
    "a cell of the csv": edited("findings.csv", "0.998", "0.898"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_in_an_older_run_is_named_although_its_seal_was_made_to_fit(older: Path, what: str) -> None:
    named = TAMPERED[what](older)
    forge_seal(older)
    found = faults(older)
    assert any(line.startswith(f"{named}: ") for line in found), found


def test_settings_of_then_are_read_by_no_class_of_today(older: Path) -> None:
    """A key that is gone, of a stage that is gone: held by its name, and never parsed."""
    settings, tree = older / "config.toml", read_checksummed(older / "run.json")
    settings.write_text(settings.read_text().replace("[triage]", "[triage]\nfashion = 3", 1))
    tree["stages"]["triage"]["fields"]["triage.fashion"] = 3
    (older / "run.json").write_bytes(checksummed(tree))
    forge_seal(older)
    assert not any(line.startswith(f"{settings}: ") or "could not be carried out" in line for line in faults(older))
    settings.write_text(settings.read_text().replace("fashion = 3", "fashion = 4", 1))
    assert f"{settings}: triage.fashion: not what triage was made with" in faults(older)


@pytest.mark.parametrize(
    "facts", [{"plugs": [{"name": "x"}]}, {"plugs": {"name": "x"}}, {"plugs": ["x"]}, None], ids=str
)
def test_a_record_that_does_not_say_its_plugs_is_damage(older: Path, facts: Any) -> None:
    tree = read_checksummed(older / "run.json")
    tree["facts"] = facts if facts is None else tree["facts"] | facts
    (older / "run.json").write_bytes(checksummed(tree))
    says = f"{older / 'run.json'}: does not say what plugs the run was made with"
    with pytest.raises(IntegrityError, match=says):
        sharpaudit.open_run(older)
    assert says in faults(older)


def test_whatever_keeps_verify_from_knowing_the_version_is_a_fault(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.operations.older.printable", lambda _: 1 / 0)
    told = faults(older)
    assert any("the check of its version could not be carried out: ZeroDivisionError" in line for line in told)


def test_settings_that_its_own_version_refuses_are_a_fault(kept: dict[int, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(kept[RUN_VERSION] / "run", tmp_path / "run"))
    edited("config.toml", "[triage]", "[triage]\nfashion = 3")(root)
    forge_seal(root)
    verdict = examine(root)
    assert verdict.notes == []
    (told,) = [line for line in verdict.faults if line.startswith(str(root / "config.toml"))]
    assert told.startswith(f'{root / "config.toml"}: unknown key "triage.fashion"')


def test_its_superseded_shards_are_pruned_and_it_stays_whole(older: Path) -> None:
    dropped = prune(older)
    assert dropped.shards == 1
    assert faults(older) == []
    assert rows(older, FINDINGS) == told_findings(older)


def test_it_can_be_signed_and_what_was_not_checked_is_said(older: Path, tmp_path: Path) -> None:
    public = make_key(tmp_path / "mine.pem")
    told = command("sign", older, "--key", tmp_path / "mine.pem")
    assert NOT_MADE_AGAIN in told.output
    assert faults(older, read_public(public)) == []
    assert read_signer(tmp_path / "mine.pem").public_key.keyid in told.output


def test_a_finding_of_an_older_run_is_made_again(kept: dict[int, Path], older: Path) -> None:
    """With its own model and index, wherever they are now."""
    settings = older / "config.toml"
    settings.write_text(settings.read_text().replace("/srv/audits", str(kept[FIRST])))
    prompt_id = told_findings(older)[0][0]
    assert replay_prompt(older, prompt_id).same
    tree = read_checksummed(older / "run.json")
    tree["facts"]["index_digest"] = "0" * 64
    (older / "run.json").write_bytes(checksummed(tree))
    with pytest.raises(UserError, match="index_digest is not what this run was made with"):
        replay_prompt(older, prompt_id)


def test_the_tables_of_version_4_are_those_of_the_run_that_is_kept(older: Path) -> None:
    """Name, stage, key, version and every column: what ships of them is held against files, not against today's."""
    run = RunFolder.open(older)
    stages = (run.record() or {})["stages"]
    for entry in of_version_4():
        own = rebuilt(entry)
        folder = run.table(own)
        assert stages[own.stage]["versions"][own.name] == own.version
        manifests = folder.manifests()
        assert {manifest.schema_version for manifest in manifests} == {own.version}
        found = folder.read_all(manifests)
        assert (found.schema, found.schema.metadata) == (own.schema, own.schema.metadata)
    assert {path.parent.parent.relative_to(older).as_posix() for path in older.glob("**/table.json")} == {
        entry["name"] for entry in of_version_4()
    }


# A run of whatever tables


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../elsewhere"},
        {"name": "a/b/c"},
        {"name": 'x" AS SELECT 1; --'},
        {"name": ""},
        {"stage": "../x"},
        {"key": ["nowhere"]},
        {"columns": [{"name": 'a"b', "type": "string", "nullable": True}]},
        {"columns": [{"name": "prompt_id", "type": "no_type", "nullable": False}]},
        {"columns": "text"},
        {"columns": None},
        {"version": "one"},
        {"columns": [{"name": "x", "type": "list<" * 5000 + "int8" + ">" * 5000, "nullable": True}]},
        {"columns": [{"name": "x", "type": "map<string, " * 9 + "int8" + ">" * 9, "nullable": True}]},
        {"name": "risk"},
        {"name": "by/label"},
        {"name": "samples"},
        {"name": "stored_samples"},
        {"name": "empty/corpus"},
        {"name": "images"},
        {"name": "report/x"},
        {"name": "scores/x"},
        {"name": "fit"},
    ],
    ids=lambda change: str(change)[:60],
)
def test_a_record_that_no_run_writes_is_refused(older: Path, change: dict[str, Any]) -> None:
    tree = read_checksummed(older / "run.json")
    entries = [described(own) for own in RUN_TABLES]
    tables = [{"tables": [entries[0] | change, *entries[1:]]}, {"tables": [*entries, entries[0]]}, {}]
    for told in tables:
        (older / "run.json").write_bytes(checksummed(tree | {"run_version": RUN_VERSION} | told))
        with pytest.raises(IntegrityError, match=r"run\.json: does not say what tables the run has"):
            sharpaudit.open_run(older)


def test_views_of_others_stand_where_what_they_read_is_there(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {
        "worst": "with best as (from findings) select prompt_id from best order by best_similarity desc limit 1",
        "of_worst": "select m.* from matches m join worst using (prompt_id)",
        "elsewhere": "select prompt_id from unlearning",
        "of_a_later_column": "select later from scores",
        "corpus": "select 1 as x",
    }
    run = RunFolder.open(older)
    monkeypatch.setattr(reading, "foreign_views", lambda _: others)
    with open_connection(run) as connection:
        assert len(query(connection, "from worst").rows) == 1
        assert len(query(connection, "from of_worst").rows) > 0
        assert len(query(connection, "from corpus").rows) == 220
        for name in ("elsewhere", "of_a_later_column"):
            with pytest.raises(UserError, match=f"{name} does not exist"):
                query(connection, f"from {name}")


def test_a_strangers_mistake_in_a_view_keeps_nobody_from_a_run(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = MISTAKEN | {"good": "select count(*) as n from corpus"}
    monkeypatch.setattr(reading, "foreign_views", lambda _: others)
    assert rows(older, "from good") == [(220,)]
    assert rows(older, FINDINGS) == told_findings(older)
    assert len(rows(older, "from risk")) == 38
    assert faults(older) == []
    run = RunFolder.open(older)
    materialise(current_files(run), older.with_name("a.duckdb"), tables=run.tables(), others=others)
