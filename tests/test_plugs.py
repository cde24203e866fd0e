"""Plugs: known by name, imported when named, refused in one line where names collide or are unknown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sharpaudit import plugs
from sharpaudit.errors import UserError
from sharpaudit.plugs import HERE, KINDS, Origin, Plugs


@dataclass(frozen=True)
class Tool:
    name: str
    digest: str = ""


HAMMER, SAW = Tool("hammer"), Tool("saw")
GROUP = "sharpaudit.tools"


@pytest.fixture
def tools() -> Plugs[Tool]:
    place = f"{__name__}:"
    return Plugs("tool", GROUP, f"{place}Tool", {"hammer": f"{place}HAMMER", "saw": f"{place}SAW"})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path in which distributions can be put, as pip leaves them."""
    monkeypatch.syspath_prepend(tmp_path)
    plugs._offered.cache_clear()
    yield tmp_path
    plugs._offered.cache_clear()


def offer(folder: Path, distribution: str, code: str, name: str = "drill", version: str = "1.2") -> None:
    """A distribution with one module and one entry point."""
    module = distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:DRILL\n")
    plugs._offered.cache_clear()


def code(name: str = "drill", digest: str = "1") -> str:
    return f"from {__name__} import Tool\nDRILL = Tool({name!r}, {digest!r})\n"


def test_ours_are_listed_without_an_import_and_have_no_origin(tools: Plugs[Tool]) -> None:
    assert tools.names() == ["hammer", "saw"]
    assert tools["saw"] is SAW
    assert tools.origin("saw") is None
    assert "saw" in tools
    assert "axe" not in tools


def test_one_that_a_program_adds_is_known_in_its_process(tools: Plugs[Tool]) -> None:
    axe = tools.add(Tool("axe", "7"))
    assert tools["axe"] is axe
    assert tools.origin("axe") == Origin(HERE, "", "7")
    tools.remove("axe")
    with pytest.raises(UserError, match=r'no tool is called "axe"; known are hammer, saw'):
        tools["axe"]


def test_one_of_another_distribution_is_imported_when_it_is_named(tools: Plugs[Tool], installed: Path) -> None:
    offer(installed, "drill-works", code())
    assert tools.names() == ["hammer", "saw", "drill"]
    assert "drill_works" not in sys.modules
    assert tools["hammer"] is HAMMER
    assert "drill_works" not in sys.modules
    assert tools["drill"] == Tool("drill", "1")
    assert tools.origin("drill") == Origin("drill-works", "1.2", "1")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("import nowhere_at_all\n", "cannot be imported: No module named 'nowhere_at_all'"),
        ("1 / 0\n", "cannot be imported: division by zero"),
        ("", "cannot be imported: .*DRILL"),
        ("DRILL = 3\n", "a int, where a Tool is expected"),
        (code("auger"), 'calls itself "auger"'),
        (code(digest=""), "declares no digest"),
    ],
)
def test_one_that_is_none_is_refused_with_its_distribution(
    tools: Plugs[Tool], installed: Path, written: str, says: str, request: pytest.FixtureRequest
) -> None:
    name = f"works-{abs(hash(request.node.name))}"
    offer(installed, name, written)
    with pytest.raises(UserError, match=f'tool "drill" of {name}: {says}') as refused:
        tools["drill"]
    assert "\n" not in str(refused.value)


def test_names_that_collide_are_refused(tools: Plugs[Tool], installed: Path) -> None:
    offer(installed, "first-works", code())
    offer(installed, "second-works", code())
    with pytest.raises(UserError, match=r'tool "drill" is offered by (first|second)-works and by (first|second)-works'):
        tools["drill"]
    offer(installed, "third-works", code("saw"), "saw")
    with pytest.raises(UserError, match=r'tool "saw" is offered by sharpaudit and by third-works'):
        tools["saw"]
    for name in ("saw", "SAW"):
        with pytest.raises(UserError, match="there is one of that name"):
            tools.add(Tool(name, "1"))


def test_names_that_differ_by_case_alone_are_refused(tools: Plugs[Tool], installed: Path) -> None:
    offer(installed, "loud-works", code("HAMMER"), "HAMMER")
    for name in ("hammer", "HAMMER"):
        with pytest.raises(UserError, match="differ by case alone"):
            tools[name]


def test_a_name_that_is_nearly_one_is_told(tools: Plugs[Tool]) -> None:
    with pytest.raises(
        UserError, match=r'no tool is called "hamer" \(did you mean "hammer"\?\); known are hammer, saw'
    ):
        tools["hamer"]


def test_ours_are_where_the_tables_say() -> None:
    for kind in KINDS.values():
        assert [kind[name].name for name in kind.ours()] == kind.ours()
