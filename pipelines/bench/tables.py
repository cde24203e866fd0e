"""The tables that the docs show, made anew and put where they stand.

A table stands between two markers, which name what prints it:

    <!-- bench cascade -->              all that the command prints
    <!-- bench decisions: Power at -->  of what it prints the table under the title that begins so
    <!-- end -->

and ends with a line that says how, in how long and on which machine it was made. A title is a line of text right
before a table. A page is replaced in one step, and only by a table that is whole: where a command fails or is
interrupted, or prints no table of that title, the old one stays.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sharpaudit.config import LAB
from sharpaudit.devices import hardware_in_words
from sharpaudit.errors import UserError
from sharpaudit.tables.records import export_file

NOTE = textwrap.TextWrapper(119, break_long_words=False, break_on_hyphens=False)
EMOJI, SCORES = str(LAB / "emoji"), "runs/detection"
BLOCK = re.compile(r"<!-- bench (.*?) -->\n(.*?)<!-- end -->\n", re.DOTALL)
MACHINE = re.compile(r"^Measured on .*\n?", re.MULTILINE)
TABLE = re.compile(r"^([^|\n].*)\n\n((?:\|.*\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class Made:
    """calls: of sharpaudit, one after another; what the last one prints is the table. minutes: about, on 2 cores.

    figure: a picture that the last call draws, which stands beside the pages. whole: the calls write a page themselves,
    so that no marker names them.
    """

    calls: tuple[tuple[str, ...], ...]
    minutes: float
    figure: str | None = None
    whole: bool = False

    @property
    def command(self) -> str:
        """As one types it."""
        return " && ".join(" ".join(["sharpaudit", *call]) for call in self.calls).replace(EMOJI, "LAB")


AUDIT = ("run", "configs/audits/quickstart.toml", "--out", "runs/quickstart", "--update")
TABLES = {
    "detection": Made((("bench", "detection", "--full"),), 15, figure="distributions.svg"),
    "trajectory": Made((("bench", "detection", "--trajectory"),), 30),
    "directions": Made((("bench", "directions"),), 2),
    "intervals": Made((("bench", "intervals"),), 1),
    "screens": Made((("bench", "screens", "--split", "development"),), 15),
    "cascade-development": Made((("bench", "cascade", "--split", "development"),), 2),
    "cascade": Made((("bench", "cascade"),), 2),
    "mitigation-development": Made((("bench", "mitigation", "--split", "development"),), 40, figure="mitigation.svg"),
    "throughput": Made((("bench", "throughput"),), 6),
    "exactness": Made((("bench", "exactness", "--simulate"),), 7),
    "exactness-test": Made((("bench", "exactness", "--split", "test"),), 4),
    "decisions": Made((("bench", "decisions"),), 2),
    "families": Made((("bench", "families"),), 1),
    "recombined": Made((("bench", "recombined"),), 4),
    "sql": Made((("bench", "sql"),), 3),
    "ingest": Made((("bench", "ingest"),), 25),
    "search": Made((("bench", "search"),), 20),
    "compare": Made((AUDIT, ("lab", "compare", "runs/quickstart", "--markdown")), 10),
    "card": Made(
        (
            ("lab", "detectors", EMOJI, "--split", "development", "--out", SCORES),
            ("lab", "detectors", EMOJI, "--split", "test", "--out", SCORES),
            ("lab", "card", EMOJI),
        ),
        15,
        whole=True,
    ),
}
"""In the order in which they are made: what is scored for one serves the next."""


class NotMadeError(Exception):
    """A table that could not be made, and why."""


@dataclass(frozen=True)
class Place:
    """Where a table stands. asked: of the marker, a name of TABLES and, after a colon, how the table's title begins."""

    page: Path
    asked: str

    @property
    def name(self) -> str:
        """Of TABLES."""
        return self.asked.partition(":")[0]


def places(docs: Path) -> list[Place]:
    """Every marker of the pages in a folder. Raises UserError for one that names no table or is not closed."""
    found = []
    for page in sorted(docs.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        here = [Place(page, asked) for asked, _ in BLOCK.findall(text)]
        if len(here) != text.count("<!-- bench ") or len(here) != text.count("<!-- end -->"):
            raise UserError(f"{page}: a line <!-- bench NAME --> and a line <!-- end --> must take turns")
        found += here
    for place in found:
        if place.name not in TABLES or TABLES[place.name].whole:
            known = ", ".join(name for name, made in TABLES.items() if not made.whole)
            raise UserError(f"{place.page}: <!-- bench {place.asked} --> names no table; known are {known}")
    return found


def remake(docs: Path, names: Sequence[str], tell: Callable[[str], None]) -> Iterator[str]:
    """Make the tables of these names and put them into the pages of `docs`; yields a sentence for what went wrong.

    tell: is given a line before and after each. Raises UserError where a page shows none of a name, before anything is
    made.
    """
    shown = places(docs)
    for name in names:
        if not TABLES[name].whole and not any(place.name == name for place in shown):
            raise UserError(f"{docs}: no page has a line <!-- bench {name} -->; name the folder of the pages by --into")
    for name in names:
        made, here = TABLES[name], [place for place in shown if place.name == name]
        tell(f"{name}: `{made.command}`, about {made.minutes:g} minutes")
        begun = time.monotonic()
        try:
            goals_met = _make(made, here, docs)
        except NotMadeError as error:
            yield f"{name}: {error}; the old table stays"
            continue
        into = ", ".join(sorted({str(place.page) for place in here}))
        tell(f"{name}: made in {_minutes(begun)} minutes{into and f', into {into}'}")
        if not goals_met:
            yield f"{name}: a goal is not met; the table shows it"


def _minutes(begun: float) -> str:
    return f"{(time.monotonic() - begun) / 60:.1f}"


def _make(made: Made, here: Sequence[Place], docs: Path) -> bool:
    """Run the calls and replace the pages; whether every goal was met. Raises NotMadeError."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sharpaudit-tables-") as folder:
        for call in made.calls[:-1]:
            _run(call, None)
        drawn = Path(folder) / (made.figure or "")
        last = [*made.calls[-1], *(["--figure", str(drawn)] if made.figure else [])]
        text, goals_met = _run(last, Path(folder) / "lines.json" if last[0] == "bench" else None)
        note = f"Made by `{made.command}` in {_minutes(begun)} minutes. {hardware_in_words()}"
        blocks = {place.asked: f"{_part(text, place.asked)}\n{NOTE.fill(note)}" for place in here}
        for page in {place.page for place in here}:
            export_file(page, _filled(page.read_text(encoding="utf-8"), blocks).encode())
        if made.figure:
            export_file(docs / made.figure, drawn.read_bytes())
    return goals_met


def _run(call: Sequence[str], lines: Path | None) -> tuple[str, bool]:
    """What a call prints, and whether its goals were met. lines: where it leaves its lines once it has measured all.

    Raises NotMadeError where it ends before.
    """
    more = [] if lines is None else ["--json", str(lines)]
    command = [sys.executable, "-P", "-m", "sharpaudit", *call, *more]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, encoding="utf-8")  # noqa: S603 - our own
    # A goal that is not met ends a bench with 1 as well, but only after everything was measured.
    whole = done.returncode == 0 if lines is None else done.returncode in (0, 1) and lines.exists()
    if not whole:
        raise NotMadeError(f"`sharpaudit {' '.join(call)}` ended with {done.returncode}")
    return done.stdout, done.returncode == 0


def _part(text: str, asked: str) -> str:
    """All of the text without its own line of the machine, or the table under a title. Raises NotMadeError."""
    title = asked.partition(":")[2].strip()
    if not title:
        return MACHINE.sub("", text).strip() + "\n"
    found = [table for line, table in TABLE.findall(text) if line.startswith(title)]
    if len(found) != 1:
        titles = "; ".join(line for line, _ in TABLE.findall(text))
        raise NotMadeError(f'{len(found)} tables under a title that begins with "{title}"; the titles are: {titles}')
    return str(found[0])


def _filled(page: str, blocks: dict[str, str]) -> str:
    """The page with the blocks that are given, by their markers; all else as it was."""

    def fill(match: re.Match[str]) -> str:
        asked = match.group(1)
        return match.group(0) if asked not in blocks else f"<!-- bench {asked} -->\n\n{blocks[asked]}\n\n<!-- end -->\n"

    return BLOCK.sub(fill, page)
