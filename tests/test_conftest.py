"""The tests prepare nothing that the product needs: what conftest sets is listed there, and this holds the list."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.shells import bare

ROOT = Path(__file__).parents[1]
CONFTESTS = sorted((ROOT / "tests").rglob("conftest.py"))
ALLOWED = {"os.sched_setaffinity", "settings.register_profile", "settings.load_profile", "sys.addaudithook"}
"""Calls for their effect, each with its reason in tests/conftest.py."""
STARTS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}

SETS = """
import os, runpy, sys
import numpy, torch, hypothesis, pytest
def state():
    return dict(os.environ), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
before = state()
for path in sys.argv[1:]:
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path)
assert state() == before, (before, state())
"""


def effects(source: str) -> set[str]:
    """The calls that a module makes as it is imported, but for those whose value it keeps or decorates with."""
    found, open_ = set(), list(ast.parse(source).body)
    while open_:
        node = open_.pop()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found.add(ast.unparse(node.value.func))
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            found |= {ast.unparse(target) for target in targets if not isinstance(target, ast.Name)}
        if isinstance(node, (ast.If, ast.With, ast.For, ast.While, ast.Try)):
            open_ += [child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "os.environ['A'] = '1'",
        "if x:\n    os.environ.setdefault('A', '1')",
        "torch.set_num_threads(1)",
        "del os.environ['A']",
    ],
)
def test_the_rule_sees_what_is_set(source: str) -> None:
    assert effects(source) - ALLOWED


@pytest.mark.parametrize("path", CONFTESTS, ids=lambda path: path.parent.name)
def test_conftest_sets_what_is_listed_and_nothing_else(path: Path) -> None:
    assert effects(path.read_text(encoding="utf-8")) <= ALLOWED
    assert "setenv" not in path.read_text(encoding="utf-8")


def test_every_entry_of_the_list_has_its_reason() -> None:
    source = (ROOT / "tests/conftest.py").read_text(encoding="utf-8")
    assert effects(source) == ALLOWED
    for name in ALLOWED:
        assert f"`{name.rpartition('.')[2]}`" in (ast.get_docstring(ast.parse(source)) or ""), name


def test_loading_them_leaves_variables_kernels_and_threads_as_they_are() -> None:
    call = [sys.executable, "-W", "ignore", "-c", SETS, str(ROOT / "tests/conftest.py")]
    done = subprocess.run(call, env=bare(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_has_no_more_threads_than_its_test_process_has_cores() -> None:
    """Where two share the machine. It counts the cores once, as it is loaded: conftest must have taken them before."""
    assert torch.get_num_threads() <= len(os.sched_getaffinity(0))


def test_every_process_that_a_test_starts_is_told_its_variables() -> None:
    """`env=`: else it would inherit what this process happens to have."""
    bad = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in STARTS:
                continue
            if "env" not in {keyword.arg for keyword in node.keywords}:
                bad.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert bad == []


def test_make_and_the_whole_check_set_no_variable_for_the_tests() -> None:
    recipes = [
        line.strip() for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if line[:1] == "\t"
    ]
    lines = [line for line in recipes if "pytest" in line or "sharpaudit run" in line]
    lines += (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 8
    assert [line for line in lines if re.match(r"@?(export |env )?[A-Z_]+=", line)] == []
