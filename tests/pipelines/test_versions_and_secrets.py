"""Runs of earlier versions are refused by number, and what the environment keeps secret stands nowhere in a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import sharpaudit
from pipelines.flow.identity import identities
from pipelines.operations.status import describe
from pipelines.operations.verify import settings_faults
from pipelines.stages import flow, tables
from pipelines.stages.base import Inputs
from sharpaudit.config import AuditConfig, SamplesConfig, reading, under_todays_names
from sharpaudit.config.earlier import with_defaults_of_then
from sharpaudit.config.samples import SolverName
from sharpaudit.errors import UserError
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import OLDEST, RUN_VERSION, RunFolder, changes
from tests.support.audits import audit, command, finish
from tests.support.golden import FIRST, unpacked

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_run_of_every_version_is_kept_here() -> None:
    bare, whole = ([path.name for path in sorted(GOLDEN.glob(name))] for name in ("run-*", "whole-*"))
    assert bare == [f"run-version-{n}" for n in range(1, FIRST + 1)]
    assert whole == [f"whole-version-{n}.tar.gz" for n in range(FIRST, RUN_VERSION + 1)]


@pytest.mark.parametrize("number", range(1, OLDEST))
def test_a_run_of_an_earlier_version_is_refused_and_never_guessed(
    config_path: Path, tmp_path: Path, number: int
) -> None:
    root = Path(shutil.copytree(GOLDEN / f"run-version-{number}", tmp_path / "run"))
    before = sorted(path.name for path in root.iterdir())
    refusal = f"run version {number}; this sharpaudit reads versions {OLDEST} to {RUN_VERSION}"
    for call in (lambda: RunFolder.open(root).record(), lambda: sharpaudit.open_run(root)):
        with pytest.raises(UserError, match=refusal):
            call()
    with pytest.raises(UserError, match=refusal):
        audit(config_path, root)
    assert [name for name in sorted(path.name for path in root.iterdir()) if name in before] == before
    assert not (root / "scores").exists()


def test_a_secret_of_the_environment_is_written_nowhere(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "canary-8d0f1c7e"
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SHARPAUDIT_SECRET"):
        monkeypatch.setitem(os.environ, name, canary)
    code, out, err = finish(command("run", config_path, "--out", tmp_path / "run"))
    assert code == 0, err
    assert canary not in out + err
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path


def test_a_run_of_version_4_is_read_as_it_was() -> None:
    """Whoever changes what this program makes of an older run's tables fails here, not at a user's desk."""
    root = GOLDEN / "run-version-4"
    told = json.loads((root / "facts.json").read_text())
    flow = {step["step"]: step["n"] for step in told["flow"]}
    run = RunFolder.open(root)
    assert run.config().name == told["run"]["name"]
    assert list(settings_faults(run)) == []
    assert {table["complete"] for table in describe(run)["tables"].values()} == {True}
    for table in run.tables():
        run.table(table).read_all(run.table(table).current())
    with open_connection(run) as connection:
        rows = connection.sql(
            "SELECT prompt_id, best_reference_id, best_similarity FROM findings ORDER BY ALL"
        ).fetchall()
        (scored,) = connection.sql("SELECT count(*) FROM triage WHERE role = 'audit' AND status = 'ok'").fetchall()
    keys = ("prompt_id", "best_reference_id", "best_similarity")
    assert rows == sorted(tuple(row[key] for key in keys) for row in told["findings"]["rows"])
    assert scored == (flow["scored"],)
    assert len(rows) > 0


def test_a_run_of_this_version_that_was_made_earlier_is_as_if_made_now(tmp_path: Path) -> None:
    """Whoever changes a table, a record or an identity without a new RUN_VERSION fails here."""
    run = RunFolder.open(unpacked(RUN_VERSION, tmp_path) / "run")
    record = run.record() or {}
    assert list(run.tables()) == tables(flow(run.config()))
    # A field that is of an identity since then would have a finished run done again.
    assert changes(record, identities(run.config(), Inputs(**record["facts"]), run.earlier())) == []


def test_what_came_later_has_the_default_of_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run of version 4; one of this version names every setting, and a new configuration takes today's."""

    class LaterSamples(SamplesConfig):
        solver: SolverName = "dpm-solver++"

    class Later(AuditConfig):
        samples: LaterSamples = LaterSamples()

    monkeypatch.setattr(reading, "AuditConfig", Later)
    run = RunFolder.open(GOLDEN / "run-version-4")
    assert reading.parse(under_todays_names(run.settings())[0], "").samples.solver == "dpm-solver++"
    assert run.config().samples.solver == "ddim"
    assert with_defaults_of_then({}, RUN_VERSION) == {}


def test_a_run_made_under_earlier_names_is_held_against_what_it_was_made_with(tmp_path: Path) -> None:
    """Its settings are read under today's names, and a changed one is still seen."""
    root = Path(shutil.copytree(GOLDEN / "run-version-4", tmp_path / "run"))
    run = RunFolder.open(root)
    numbers = {"samples.per_flagged": 2, "samples.per_control": 1, "samples.per_band": 1}
    assert run.earlier() == numbers | {"matches.profile": "pixels-16"}
    assert run.config().samples.per_prompt == 2
    assert run.config().matches.profiles == ["pixels-16"]
    settings = root / "config.toml"
    settings.write_text(settings.read_text().replace("per_control = 1", "per_control = 2"))
    (fault,) = settings_faults(run)
    assert "samples.per_control: not what triage was made with" in fault
