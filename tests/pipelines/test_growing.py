"""A run that grows, that is cut by a deadline, pruned or asked to try again ends where one uninterrupted run ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.flow.deadline import Deadline
from pipelines.flow.outcome import exit_code
from pipelines.flow.signals import InterruptedRunError
from pipelines.operations.prune import prune
from pipelines.operations.verify import faults
from pipelines.stages.ingest import rows_per_shard
from sharpaudit.config import moment
from sharpaudit.denoisers.base import Conditioning
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser
from sharpaudit.errors import UserError
from sharpaudit.evidence.seal import revision
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import DIFFERENCES, MATCHES, RUN_TABLES, SAMPLES, SCORES
from tests.support.audits import audit, command, finish, load, stray, tables

CHANGED = ("triage.alpha=0.1", "samples.steps=5")


@pytest.fixture(scope="module")
def halves(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The audited file in two, each with a row of the other, so that a duplicate comes late."""
    header, *rows = (config_path.parent / "testbed/prompts/audit.csv").read_text().splitlines()
    middle = len(rows) // 2
    folder = tmp_path_factory.mktemp("halves")
    paths = folder / "first.csv", folder / "second.csv"
    for path, part in zip(paths, (rows[:middle], [rows[0], *rows[middle:]]), strict=True):
        path.write_text("\n".join([header, *part]) + "\n")
    return paths


@pytest.fixture(scope="module")
def audited_half(config_path: Path, halves: tuple[Path, Path]) -> Path:
    audit(config_path, halves[0].parent / "half", f"corpus.audit={halves[0]}")
    return halves[0].parent / "half"


@pytest.fixture
def half(audited_half: Path, tmp_path: Path) -> Path:
    """The audit of the first half, for tests that extend it."""
    return Path(shutil.copytree(audited_half, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(config_path: Path, halves: tuple[Path, Path]) -> Path:
    """An uninterrupted audit of both halves."""
    audit(config_path, halves[0].parent / "whole", f'corpus.audit=["{halves[0]}", "{halves[1]}"]')
    return halves[0].parent / "whole"


@pytest.fixture(scope="module")
def outdated(config_path: Path, clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit that holds what it was before its settings changed as well."""
    root = Path(shutil.copytree(clean, tmp_path_factory.mktemp("outdated") / "run"))
    audit(config_path, root, *CHANGED, update=True)
    return root


def as_sets(made: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    return {name: sorted(map(repr, rows)) for name, rows in made.items()}


def test_an_extended_run_is_that_of_all_prompts_and_makes_nothing_twice(
    half: Path, halves: tuple[Path, Path], whole: Path
) -> None:
    before = {m.shard: m for t in (SCORES, SAMPLES, MATCHES) for m in RunFolder.open(half).table(t).manifests()}
    small = tables(half)
    outcome = CliRunner().invoke(cli, ["extend", str(half), str(halves[1])])
    assert outcome.exit_code == 0, outcome.output
    after = {m.shard: m for t in (SCORES, SAMPLES, MATCHES) for m in RunFolder.open(half).table(t).manifests()}
    assert {name: after[name] for name in before} == before
    grown = tables(half)
    assert as_sets(grown) == as_sets(tables(whole))
    assert len(grown["origins"]) > len(small["origins"])
    made = [m for name, m in after.items() if name not in before]
    scored = {row["prompt_id"] for row in grown["scores"]} - {row["prompt_id"] for row in small["scores"]}
    assert sum(m.rows for m in made if m.table == "scores") == 3 * len(scored)
    known = {row["sample_id"] for row in small["samples"]}
    assert not known & {key[0] for m in made if m.table == "samples" for key in m.keys}
    assert faults(half) == []
    assert revision(half)["revision"] == 2


def test_files_that_were_added_stay_part_of_the_run(config_path: Path, half: Path, halves: tuple[Path, Path]) -> None:
    again = ["extend", str(half), str(halves[1])]
    assert CliRunner().invoke(cli, again).exit_code == 0
    made = tables(half)
    outcome = CliRunner().invoke(cli, again)
    assert outcome.exit_code == 0
    assert "nothing was left to do" in outcome.output
    assert audit(config_path, half, f"corpus.audit={halves[0]}").evaluations == 0
    assert tables(half) == made


def test_run_does_not_take_up_other_prompts_by_itself(
    config_path: Path, half: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    both = f'corpus.audit=["{halves[0]}", "{halves[1]}"]'
    with pytest.raises(UserError, match=r"second\.csv is not part of this run .* `sharpaudit extend`"):
        audit(config_path, half, both)
    assert faults(half) == []


def test_a_run_grows_by_a_file_of_a_name_that_it_has(
    config_path: Path, half: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "first.csv"
    other.write_text("id,prompt\n1,Another prompt altogether\n")
    before = tables(half)
    assert CliRunner().invoke(cli, ["extend", str(half), str(other)]).exit_code == 0
    grown = tables(half)
    assert {row["source"] for row in grown["origins"]} >= {"audit:first.csv", "audit:other/first.csv"}
    assert len(grown["corpus"]) == len(before["corpus"]) + 1
    assert audit(config_path, half, f"corpus.audit={halves[0]}").evaluations == 0
    assert faults(half) == []


def test_files_that_cannot_be_read_do_not_become_part_of_the_run(
    config_path: Path, half: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    before = tables(half)
    added = tmp_path / "added.csv"
    added.write_text("id,text\n1,A new prompt\n")
    outcome = CliRunner().invoke(cli, ["extend", str(half), str(added)])
    assert isinstance(outcome.exception, UserError)
    assert audit(config_path, half, f"corpus.audit={halves[0]}").evaluations == 0
    assert tables(half) == before
    assert faults(half) == []
    added.write_text("id,prompt\n1,A new prompt\n")
    assert CliRunner().invoke(cli, ["extend", str(half), str(added)]).exit_code == 0
    assert len(tables(half)["corpus"]) == len(before["corpus"]) + 1


def test_a_prompt_that_calibrates_already_comes_too_late_and_is_counted(half: Path, tmp_path: Path) -> None:
    taken = [row["prompt"] for row in tables(half)["corpus"] if row["role"] == "calibration"][:2]
    late = tmp_path / "late.csv"
    late.write_text("id,prompt\n" + "".join(f'{i},"{prompt}"\n' for i, prompt in enumerate([*taken, "A new one"])))
    before = tables(half)
    assert CliRunner().invoke(cli, ["extend", str(half), str(late)]).exit_code in (0, 3)
    rows = [row for row in tables(half)["origins"] if row["source"] == "audit:late.csv"]
    assert sorted(row["status"] for row in rows) == ["in_calibration", "in_calibration", "ok"]
    assert len(tables(half)["corpus"]) == len(before["corpus"]) + 1


@pytest.mark.parametrize(
    "point",
    [
        "committed:1",
        *(
            pytest.param(p, marks=pytest.mark.chaos)
            for p in ("table.committed/corpus:1", "work.processed:1", "sealed:1")
        ),
    ],
)
def test_an_extension_cut_off_is_resumed_by_either_command(
    config_path: Path, half: Path, halves: tuple[Path, Path], whole: Path, tmp_path: Path, point: str
) -> None:
    code, _, err = finish(command("extend", half, halves[1], crash=f"{point}:kill@{tmp_path}/struck"))
    assert code < 0, err
    if point == "work.processed:1":
        audit(config_path, half, f"corpus.audit={halves[0]}")
    else:
        assert CliRunner().invoke(cli, ["extend", str(half), str(halves[1])]).exit_code == 0
    assert as_sets(tables(half)) == as_sets(tables(whole))
    assert faults(half) == []
    assert not stray(half)


class Night:
    """A clock that strikes once `n` shards of row stages were handed out."""

    def __init__(self, n: int) -> None:
        self.n, self.begun = n, False

    def __call__(self) -> float:
        struck = self.begun and self.n <= 0
        self.begun = True
        return 1e9 if struck else 0.0

    def counting(self, deadline: Deadline) -> Deadline:
        taken = deadline.taken

        def counted(stage: Any, work: Any) -> Iterator[Any]:
            for item in taken(stage, work):
                self.n -= stage.scope == "row"
                yield item

        deadline.taken = counted  # type: ignore[method-assign]
        return deadline


@pytest.mark.parametrize("n", [0, *(pytest.param(n, marks=pytest.mark.chaos) for n in (2, 4, 7, 9, 12)), 16])
def test_a_deadline_leaves_a_report_of_what_is_covered_and_the_rest_to_another_night(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    night = Night(n)
    noon = datetime(2026, 1, 1, 12)
    monkeypatch.setattr("pipelines.audit.Deadline", lambda told: night.counting(Deadline("13:00", noon, night)))
    root, config = tmp_path / "run", load(config_path)
    try:
        outcome = audit(config_path, root)
    except InterruptedRunError as error:
        assert error.exit_code == 143
        assert "harmless prompts" in str(error)
        assert not (root / "report").exists()
    else:
        assert outcome.late
        assert exit_code(outcome, config) == 143
        assert outcome.facts["reconciles"], outcome.facts["differences"]
        assert "was not begun before the deadline" in (root / "report/index.html").read_text()
        assert faults(root) == []
        assert sum(entry["rows"] for entry in outcome.quarantined) > 0
    monkeypatch.undo()
    finished = audit(config_path, root)
    assert not finished.late
    assert tables(root) == tables(clean)
    assert faults(root) == []


def test_a_night_ends_after_the_fit_only_once_harmless_prompts_are_scored(clean: Path) -> None:
    """The cases above meet both ends: too early for any statement, and late enough for one."""
    run = RunFolder.open(clean)
    needed = len(run.table(DIFFERENCES).current()) + sum(
        m.shard.startswith("calibration") for m in run.table(SCORES).current()
    )
    assert 4 < needed <= 10


def test_the_deadline_is_the_next_such_time() -> None:
    evening = datetime(2026, 11, 25, 22, 30)
    assert moment("07:00", evening) == datetime(2026, 11, 26, 7)
    assert moment("23:00", evening) == datetime(2026, 11, 25, 23)
    assert moment("22:30", evening) == datetime(2026, 11, 26, 22, 30)
    assert moment("2026-12-01T06:15", evening) == datetime(2026, 12, 1, 6, 15)
    for wrong in ("7 o'clock", "25:00", "tomorrow", "7:00"):
        with pytest.raises(ValueError, match="a time of day"):
            moment(wrong, evening)
    with pytest.raises(UserError, match="has passed already"):
        Deadline("2026-11-25T22:00", evening)
    assert not Deadline(None).passed


def test_a_mistaken_deadline_is_one_line(config_path: Path) -> None:
    with pytest.raises(UserError, match=r'run\.deadline = "7am".*a time of day such as "07:00"'):
        load(config_path, "run.deadline=7am")


def test_prune_drops_what_is_no_longer_current_and_nothing_else(config_path: Path, clean: Path, copy: Path) -> None:
    sealed = revision(copy)
    assert prune(copy).shards == 0
    assert revision(copy) == sealed
    audit(config_path, copy, *CHANGED, update=True)
    made, report = tables(copy), (copy / "report/index.html").read_bytes()
    planned = prune(copy, dry_run=True)
    assert planned.shards > 0
    assert planned.pictures > 0
    room = sum(path.stat().st_size for path in copy.rglob("*") if path.is_file())
    assert prune(copy) == planned
    assert room - sum(path.stat().st_size for path in copy.rglob("*") if path.is_file()) > planned.bytes / 2
    assert tables(copy) == made
    assert (copy / "report/index.html").read_bytes() == report
    assert faults(copy) == []
    assert prune(copy).shards == 0
    folders = {path.parent for path in copy.rglob("table.json")}
    current = {RunFolder.open(copy).table(table).folder for table in RUN_TABLES}
    assert folders == current
    # Back to the old settings: made again, and equal.
    audit(config_path, copy, update=True)
    assert tables(copy) == tables(clean)


def test_an_unfinished_run_is_not_pruned(config_path: Path, tmp_path: Path) -> None:
    """What it has done is in no list yet, and would go."""
    root = tmp_path / "run"
    code, _, _ = finish(command("run", config_path, "--out", root, crash="table.committed/triage:1:kill"))
    assert code < 0
    held = sorted(path for path in root.rglob("*") if path.is_file())
    outcome = CliRunner().invoke(cli, ["prune", str(root)])
    assert isinstance(outcome.exception, UserError)
    assert "not finished" in str(outcome.exception)
    assert sorted(path for path in root.rglob("*") if path.is_file()) == held


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_prune_cut_off_loses_nothing_that_is_current(
    config_path: Path, outdated: Path, tmp_path: Path, k: int
) -> None:
    root = Path(shutil.copytree(outdated, tmp_path / "run"))
    made = tables(root)
    code, _, err = finish(command("prune", root, crash=f"forgotten:{k}:kill@{tmp_path}/struck"))
    assert code < 0, err
    audit(config_path, root, *CHANGED)
    assert tables(root) == made
    assert prune(root).shards > 0
    assert faults(root) == []


def spoiled(prompts: set[str]) -> Callable[[GaussianDenoiser, Any], Conditioning]:
    """An encoder that fails for some prompts."""
    encode = GaussianDenoiser.encode

    def too_big(self: GaussianDenoiser, asked: Any) -> Conditioning:
        if prompts & set(asked):
            raise torch.OutOfMemoryError("injected")
        return encode(self, asked)

    return too_big


CHAOS = pytest.mark.chaos


@pytest.mark.parametrize("role", ["audit", pytest.param("calibration", marks=CHAOS), pytest.param("fit", marks=CHAOS)])
def test_failed_rows_are_tried_again_when_asked_and_only_then(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """Also a fit prompt, from which everything follows: no score made without it is left among the others."""
    unlucky = {next(row["prompt"] for row in tables(clean)["corpus"] if row["role"] == role)}
    root = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(GaussianDenoiser, "encode", spoiled(unlucky))
        audit(config_path, root)
    table = "fit/differences" if role == "fit" else "scores"
    assert any(row["status"] == "out_of_memory" for row in tables(root)[table])
    assert audit(config_path, root).evaluations == 0
    assert audit(config_path, root, retry=True).evaluations > 0
    assert tables(root) == tables(clean)
    assert faults(root) == []
    assert audit(config_path, root, retry=True).evaluations == 0


def test_failed_pictures_are_tried_again(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flagged = next(row["prompt_id"] for row in tables(clean)["triage"] if row["selected_for"] == "band")
    decode, prompts = GaussianDenoiser.decode, {row["prompt_id"] for row in tables(clean)["triage"]}
    assert flagged in prompts
    calls = iter(range(10**9))

    def failing(self: GaussianDenoiser, latents: torch.Tensor) -> torch.Tensor:
        made = decode(self, latents)
        return made * float("nan") if next(calls) == 0 else made

    with monkeypatch.context() as patch:
        patch.setattr(GaussianDenoiser, "decode", failing)
        audit(config_path, tmp_path / "run")
    assert any(row["status"] == "non_finite" for row in tables(tmp_path / "run")["samples"])
    audit(config_path, tmp_path / "run", retry=True)
    assert tables(tmp_path / "run") == tables(clean)


@pytest.mark.parametrize(("n_rows", "size"), [(1, 256), (51_200, 256), (51_201, 257), (10_000_000, 50_000)])
def test_a_larger_corpus_has_larger_shards_and_never_many_of_them(n_rows: int, size: int) -> None:
    assert rows_per_shard(n_rows) == size
