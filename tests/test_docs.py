"""The docs name tests, files and commands that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_table_names_is_there() -> None:
    rows = [line for line in (ROOT / "docs/reliability.md").read_text().splitlines() if line.startswith("| ")]
    named = [re.findall(r"`(?:([a-z_/]+\.py)::)?(test_\w+)`", row.rsplit("|", 2)[1]) for row in rows]
    assert sum(map(len, named)) > 50
    for cells in named:
        file = None
        for place, test in cells:
            file = place or file
            assert file is not None
            assert test in functions_of(ROOT / "tests" / file), f"{file}::{test}"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_in_the_docs_exist(path: Path) -> None:
    from pipelines.cli import cli

    for verb, second in re.findall(r"`(?:\.venv/bin/)?sharpaudit ([a-z]+)(?: ([a-z]+))?", path.read_text()):
        assert verb in cli.commands, verb
        group = getattr(cli.commands[verb], "commands", None)
        assert group is None or not second or second in group, f"{verb} {second}"
