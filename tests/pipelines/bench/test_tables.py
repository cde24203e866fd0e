"""`make tables`: every table of the docs has a command that makes it, and only a whole one replaces the old one."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipelines.bench import tables
from pipelines.bench.tables import TABLES, Made, places, remake
from pipelines.cli import cli
from pipelines.commands.lab import as_table
from pipelines.flow.signals import InterruptedRunError
from sharpaudit.errors import UserError

ROOT = Path(__file__).parents[3]
OLD = "| old |\n| --- |\n"
PRINTED = "Rates: of all\n\n| a |\n| --- |\n| 1 |\n\nPower at q\n\n| b |\n| --- |\n| 2 |\n\nMeasured on a machine.\n"


def page(docs: Path, *asked: str) -> Path:
    """A page with a block for each marker, and prose around them."""
    docs.mkdir(exist_ok=True)
    blocks = [f"Before {name}\n\n<!-- bench {name} -->\n{OLD}<!-- end -->\n\nafter {name}.\n" for name in asked]
    path = docs / "page.md"
    path.write_text("\n".join(blocks))
    return path


def printing(monkeypatch: pytest.MonkeyPatch, text: str, code: int = 0, *, whole: bool = True) -> list[list[str]]:
    """In place of every child: one that prints the text. whole: and leaves its lines. Returns the calls made."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        calls.append(command)
        if whole and "--json" in command:
            Path(command[command.index("--json") + 1]).write_text("[]")
        return SimpleNamespace(stdout=text, returncode=code)

    monkeypatch.setattr(tables.subprocess, "run", run)
    return calls


def made(docs: Path, *names: str) -> tuple[list[str], list[str]]:
    """What went wrong, and what was told meanwhile."""
    told: list[str] = []
    return list(remake(docs, names, told.append)), told


def test_every_table_of_the_docs_has_a_command_and_every_command_a_table() -> None:
    shown = {place.name for place in places(ROOT / "docs")}
    assert shown == {name for name, made in TABLES.items() if not made.whole}


@pytest.mark.parametrize("name", TABLES)
def test_the_commands_of_a_table_are_understood(name: str) -> None:
    for call in TABLES[name].calls:
        words, command = list(call), cli
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        context = command.make_context(None, words)
        assert TABLES[name].whole or call[0] != "bench" or "json_path" in context.params


@pytest.mark.parametrize("name", ["screening.md", "decisions.md"])
def test_no_table_of_a_bench_stands_outside_of_markers(name: str) -> None:
    """But those of another machine and of code that is not ours, which no command here can make again."""
    outside = tables.BLOCK.sub("", (ROOT / "docs" / name).read_text())
    titles = re.findall(r"^(.*)\n\n\|", outside, re.MULTILINE)
    assert len(titles) == len(re.findall(r"\n\n\|", outside))
    assert all(re.search("H200|[Tt]here|On it|released", title) for title in titles), titles


def test_a_table_takes_the_place_of_the_old_one_and_says_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = page(tmp_path / "docs", "decisions: Power at", "decisions: Rates", "cascade")
    before = path.read_text()
    calls = printing(monkeypatch, PRINTED)
    failed, told = made(tmp_path / "docs", "decisions")
    assert failed == []
    assert calls[0][2:6] == ["-m", "sharpaudit", "bench", "decisions"]
    blocks = dict(tables.BLOCK.findall(path.read_text()))
    power = blocks["decisions: Power at"]
    assert power.startswith(
        "\n| b |\n| --- |\n| 2 |\n\nMade by `sharpaudit bench decisions` in 0.0 minutes. Measured on"
    )
    assert "| a |" not in power
    assert "| 1 |" in blocks["decisions: Rates"]
    assert blocks["cascade"] == OLD
    # The machine in words, and once: not as the command said it.
    assert all("PyTorch" in blocks[name] and "a machine" not in blocks[name] for name in list(blocks)[:2])
    assert re.sub(tables.BLOCK, "", path.read_text()) == re.sub(tables.BLOCK, "", before)
    assert told[0] == f"decisions: `sharpaudit bench decisions`, about {TABLES['decisions'].minutes:g} minutes"
    assert str(path) in told[1]
    # Made again it stays the same but for the minutes.
    again = path.read_text()
    made(tmp_path / "docs", "decisions")
    assert path.read_text() == again


def test_a_whole_output_keeps_its_titles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = page(tmp_path / "docs", "cascade")
    printing(monkeypatch, PRINTED)
    assert made(tmp_path / "docs", "cascade")[0] == []
    assert "Rates: of all\n\n| a |" in path.read_text()
    assert "Power at q\n\n| b |" in path.read_text()


@pytest.mark.parametrize(
    ("text", "code", "whole", "why"),
    [
        (PRINTED, 1, False, "ended with 1"),
        (PRINTED, 143, True, "ended with 143"),
        (PRINTED.replace("Power at", "Strength of"), 0, True, 'a title that begins with "Power at"'),
        ("", 0, True, "0 tables"),
    ],
)
def test_the_old_table_stays_where_none_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int, whole: bool, why: str
) -> None:
    path = page(tmp_path / "docs", "decisions: Rates", "decisions: Power at")
    before = path.read_bytes()
    printing(monkeypatch, text, code, whole=whole)
    (failed,), _ = made(tmp_path / "docs", "decisions")
    assert why in failed
    assert failed.startswith("decisions: ")
    assert path.read_bytes() == before


def test_an_interrupted_table_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = page(tmp_path / "docs", "cascade", "decisions: Rates")
    before = path.read_bytes()

    def interrupted(*_: Any, **__: Any) -> None:
        raise InterruptedRunError("interrupted by SIGTERM", 143)

    monkeypatch.setattr(tables.subprocess, "run", interrupted)
    with pytest.raises(InterruptedRunError):
        made(tmp_path / "docs", "cascade", "decisions")
    assert path.read_bytes() == before


def test_a_goal_that_is_not_met_is_said_and_the_table_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = page(tmp_path / "docs", "cascade")
    printing(monkeypatch, PRINTED, 1)
    assert made(tmp_path / "docs", "cascade")[0] == ["cascade: a goal is not met; the table shows it"]
    assert "| 1 |" in path.read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<!-- bench cascades -->\n<!-- end -->\n", "names no table; known are detection"),
        ("<!-- bench card -->\n<!-- end -->\n", "names no table"),
        ("<!-- bench cascade -->\n| a |\n", "must take turns"),
        ("<!-- bench cascade -->\n<!-- bench sql -->\n<!-- end -->\n", "must take turns"),
        ("nothing\n", "no page has a line <!-- bench cascade -->"),
    ],
)
def test_a_page_that_cannot_take_its_table_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    (tmp_path / "page.md").write_text(text)
    calls = printing(monkeypatch, PRINTED)
    with pytest.raises(UserError, match=why):
        made(tmp_path, "cascade")
    assert calls == []


def test_a_name_that_is_no_table_is_refused_with_the_nearest() -> None:
    found = CliRunner().invoke(cli, ["bench", "tables", "--only", "decision"])
    assert 'did you mean "decisions"' in str(found.exception)


def test_a_figure_is_drawn_beside_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page(tmp_path, "detection")

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        Path(command[command.index("--json") + 1]).write_text("[]")
        Path(command[command.index("--figure") + 1]).write_text("drawn")
        return SimpleNamespace(stdout=PRINTED, returncode=0)

    monkeypatch.setattr(tables.subprocess, "run", run)
    assert made(tmp_path, "detection")[0] == []
    assert (tmp_path / "distributions.svg").read_text() == "drawn"


@pytest.mark.chaos
def test_a_real_bench_puts_its_table_into_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = page(tmp_path / "docs", "sql")
    small = Made((("bench", "sql", "--rows", "180000", "--out", str(tmp_path / "runs")),), 0.1)
    monkeypatch.setitem(TABLES, "sql", small)
    assert made(tmp_path / "docs", "sql")[0] == []
    assert "| the findings, worst first |" in path.read_text()


def test_a_command_that_fails_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = page(tmp_path / "docs", "sql")
    monkeypatch.setitem(TABLES, "sql", Made((("bench", "sql", "--rows", "none"),), 0.1))
    assert made(tmp_path / "docs", "sql")[0] == [
        "sql: `sharpaudit bench sql --rows none` ended with 2; the old table stays"
    ]
    assert OLD in path.read_text()


def test_an_audit_of_the_lab_is_compared_in_a_table_as_well() -> None:
    lines = [{"figure": "exact: flagged", "k": 96, "n": 1060, "share": 0.0906, "low": 0.0739, "high": 0.1095}]
    nothing = {"figure": "neighbours: flagged", "k": 0, "n": 0, "share": None, "low": 0.0, "high": 1.0}
    told = as_table([*lines, nothing, {"prompt": "a cat", "shown": "planted-dog"}])
    assert told.splitlines()[2:] == ["| exact: flagged | 96 of 1,060 | 9.1% (7.4% to 10.9%) |"]
