"""The report: its numbers against the tables, its markup against hostile text, its limits when there is nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import html5lib
import pytest

from pipelines.flow.outcome import Outcome, closing
from sharpaudit.images import decode
from sharpaudit.lab.comparison import Audited, audited_by
from sharpaudit.report.chart import histogram
from sharpaudit.report.facts import collect
from sharpaudit.report.html import findings_csv, held, number, percent, render
from sharpaudit.statistics.intervals import clopper_pearson
from sharpaudit.tables.query import connect, query, views_there
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import RunFolder
from tests.support.audits import audit, command, finish, tables


def facts_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "report/facts.json").read_text(), parse_constant=pytest.fail)


def shape(page: str) -> list[tuple[str, tuple[str, ...]]]:
    """Elements with the names of their attributes, in document order."""
    tree = html5lib.parse(page, namespaceHTMLElements=False)
    return [(str(node.tag), tuple(sorted(node.attrib))) for node in tree.iter() if isinstance(node.tag, str)]


def test_counts_and_intervals_are_those_of_the_tables(clean: Path) -> None:
    facts, made = facts_of(clean), tables(clean)
    steps = {step["step"]: step for step in facts["flow"]}
    audited = [row for row in made["triage"] if row["role"] == "audit"]
    flagged = [row for row in audited if row["flagged"]]
    assert steps["flagged"]["n"] == len(flagged)
    interval = clopper_pearson(len(flagged), len(audited))
    assert (steps["flagged"]["low"], steps["flagged"]["high"]) == (interval.low, interval.high)
    line = facts["calibration"]["flag_line"]
    assert all((row["value"] > line) == row["flagged"] for row in audited)
    assert sum(facts["histogram"]["audit"]) == len(audited)
    strata = facts["controls"]["strata"]
    assert sum(row["size"] for row in strata) == len(audited) - len(flagged)
    assert facts["controls"]["missed_high"] == pytest.approx(sum(row["missed_high"] for row in strata))
    assert all(row["missed_high"] >= row["copied"] for row in strata)


def test_the_terminal_and_the_page_give_the_same_bound(clean: Path) -> None:
    facts = facts_of(clean)
    page = (clean / "report/index.html").read_text()
    for high, shown in ((274.7, 274), (facts["controls"]["missed_high"], None)):
        facts["controls"]["missed_high"] = high
        bound = re.search(r"at most ([\d,]+) unflagged", closing(Outcome(0, [], facts), clean))[1]  # type: ignore[index]
        assert shown is None or int(bound) == shown
    assert f"With 95% confidence at most {bound} of them are unflagged" in page


def test_what_a_lab_is_compared_by_is_what_the_report_counts(clean: Path) -> None:
    with open_connection(RunFolder.open(clean)) as connection:
        audited = [Audited(*row) for row in query(connection, audited_by(views_there(connection))).rows]
    told = facts_of(clean)["copies"]
    groups = {"flagged": [a for a in audited if a.flagged], "controls": [a for a in audited if a.control]}
    for name, group in groups.items():
        assert (len(group), sum(a.shown is not None for a in group)) == (told[name]["compared"], told[name]["copied"])
    assert not any(a.flagged and a.control for a in audited)
    assert not any(a.shown for a in audited if not a.flagged and not a.control)


def test_the_index_of_a_run_says_what_it_holds_in_the_record_the_page_and_on_the_terminal(clean: Path) -> None:
    facts = facts_of(clean)
    record = RunFolder.open(clean).record()
    assert record is not None
    assert facts["run"]["index"]["holds"] == record["facts"]["index_holds"]
    assert facts["holding"]["references"] == facts["run"]["index"]["pictures"] == facts["holding"]["of"]
    assert held(facts["holding"]) in (clean / "report/index.html").read_text()
    assert "The index holds" not in closing(Outcome(0, [], facts), clean)
    facts["holding"] |= {"of": 1000, "share": facts["holding"]["references"] / 1000}
    assert held(facts["holding"]) in closing(Outcome(0, [], facts), clean)


def test_pictures_are_hidden_unless_asked_for(config_path: Path, clean: Path, tmp_path: Path) -> None:
    assert "data:image" not in (clean / "report/index.html").read_text()
    shutil.copytree(clean, tmp_path / "run")
    assert audit(config_path, tmp_path / "run", "report.show_images=true").evaluations == 0
    page = (tmp_path / "run/report/index.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    # Generated, in training, and where they agree.
    assert len(pictures) == 3 * len(facts_of(clean)["findings"]["rows"])
    assert decode(base64.b64decode(pictures[0])).shape[2] == 3


def test_the_page_loads_nothing(clean: Path) -> None:
    page = (clean / "report/index.html").read_text()
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert "url(" not in page


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}",
    "javascript:alert(1)",
    "\u202egnp\x1b[2J",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_changes_no_markup(clean: Path, text: str) -> None:
    facts = facts_of(clean)
    benign = render(facts, lambda _: b"")
    for row in facts["findings"]["rows"]:
        row["prompt"], row["best_reference_id"], row["external_ids"] = text, text, [text]
    facts["run"]["name"] = facts["run"]["model"]["source"] = facts["run"]["command"] = text
    hostile = render(facts, lambda _: b"")
    assert shape(hostile) == shape(benign)
    assert "\u202e" not in hostile
    assert "\x1b" not in hostile
    assert "=cmd" not in findings_csv(facts)


def test_what_is_undefined_is_said(clean: Path) -> None:
    connection = connect({}, clean)
    facts = collect(connection, facts_of(clean)["run"])
    connection.close()
    assert facts["reconciles"]
    assert facts["histogram"] is None
    assert facts["controls"]["recall_low"] is None
    page = render(facts, lambda _: b"")
    assert "undefined" in page
    assert "nan" not in page.lower().replace("finance", "")


def test_sums_that_do_not_agree_are_named(clean: Path) -> None:
    run = RunFolder.open(clean)
    from sharpaudit.tables.reading import current_files

    files = current_files(run)
    files["scores"] = files["scores"][1:]
    files["samples"] = files["samples"][1:]
    connection = connect(files, clean)
    facts = collect(connection, facts_of(clean)["run"])
    connection.close()
    assert not facts["reconciles"]
    words = " ".join(facts["differences"])
    assert "scored or set aside" in words
    assert "samples asked for" in words
    assert "The sums do not agree" in render(facts, lambda _: b"")


def test_numbers_are_rounded_and_never_invented() -> None:
    assert [number(v) for v in (None, 1234, 0.00012345)] == ["undefined", "1,234", "0.0001234"]
    assert [percent(v) for v in (None, 0.0, 0.0123, 0.5)] == ["undefined", "0.0%", "1.23%", "50.0%"]


@pytest.mark.parametrize("line", [None, 1.5])
def test_a_histogram_of_one_value_is_drawn(line: float | None) -> None:
    edges = [1.0 + i * 0.1 for i in range(11)]
    svg = histogram(
        {
            "edges": edges,
            "audit": [1] + [0] * 9,
            "calibration": [0] * 10,
            "line": {"says": "flagged above", "at": line},
            "metric": "m",
        }
    )
    assert svg.count("<rect") == 10
    assert ("flagged above" in svg) == (line is not None)


def test_replay_reproduces_a_finding_and_refuses_what_it_does_not_know(clean: Path) -> None:
    """By the very command that the page gives, typed where the page says."""
    page = (clean / "report" / "index.html").read_text()
    assert f"in the folder that holds the run folder <code>{clean.name}</code>" in page
    given = re.search(r"<code>sharpaudit (replay [^<]+)</code>", page)[1].split()  # type: ignore[index]
    code, out, err = finish(command(*given, cwd=clean.parent))
    assert (code, out.splitlines()[-1]) == (0, "reproduced"), err
    assert out.count("the same byte for byte") == len(out.splitlines()) - 1
    code, _, err = finish(command("replay", clean, "nothing"))
    assert code == 2
    assert "holds no sample of this prompt" in err
