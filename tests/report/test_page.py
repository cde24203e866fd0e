"""The page: nothing from outside becomes markup, nothing is loaded, pictures only on request and only the true ones."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import html5lib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.errors import IntegrityError
from sharpaudit.images import decode
from sharpaudit.report.chart import histogram
from sharpaudit.report.facts import holding
from sharpaudit.report.html import findings_csv, number, render
from tests.support.handmade import Rows, told
from tests.support.strategies import TEXTS

Facts = Callable[..., dict[str, Any]]

HOSTILE = [
    "</blockquote><script>alert(1)</script>",
    "' onmouseover='alert(1)' x='",
    '" onload="alert(1)',
    "<!-- --><svg/onload=alert(1)>",
    "{{ 7*7 }}{% for x in [] %}",
    "&#60;b&#62;",
    "]]></style><style>*{background:url(https://example.org)}</style>",
    "\u202egnp.exe\u2066\x1b[2J\x00\r\n",
    "=HYPERLINK(1)",
]
TREES = html5lib.HTMLParser(namespaceHTMLElements=False)


def no_picture(path: str) -> bytes:
    raise AssertionError(f"{path} was asked for")


def shape(page: str) -> list[tuple[str, tuple[str, ...]]]:
    """Elements and the names of their attributes, in the order of the document."""
    return [(str(e.tag), tuple(sorted(e.attrib))) for e in TREES.parse(page).iter() if isinstance(e.tag, str)]


def with_text(facts: dict[str, Any], text: str) -> dict[str, Any]:
    """The facts with `text` wherever text comes from outside."""
    found = [
        row | {"prompt": text, "best_reference_id": text, "external_ids": [text]} for row in facts["findings"]["rows"]
    ]
    run = facts["run"]
    run = run | {
        "name": text,
        "command": text,
        "folder": text,
        "replay": text,
        "model": run["model"] | {"source": text},
    }
    run |= {"hardware": run["hardware"] | {"cpu": text, "devices": [text]}}
    run |= {"inputs": [run["inputs"][0] | {"source": f"audit:{text}"}]}
    aside = [{"stage": "score", "shard": "x", "rows": 1, "reason": text}]
    chart = facts["histogram"] | {"metric": text}
    return facts | {"findings": {"total": 2, "rows": found}, "run": run, "quarantined": aside, "histogram": chart}


def test_the_page_tells_what_was_audited_how_and_what_came_of_it(known: dict[str, Any]) -> None:
    page = html.unescape(render(known, no_picture))
    run = known["run"]
    digests = (run["model"]["digest"], run["inputs"][0]["sha256"], run["index"]["digest"])
    assert run["settings"]["matches"]["index"] not in page
    settings = (
        "triage.alpha = 0.01",
        "matches.neighbours = 3",
        'scores.metrics = ["residual_gap", "noise_gap", "sharpness"]',
        "seed = 0",
    )
    for text in (*digests, *settings, run["command"], *known["limits"]):
        assert text in page, text
    assert known["findings"]["rows"]
    for row in known["findings"]["rows"]:
        numbers = f"{number(row['value'])}, {number(row['p_value'])}, {number(row['q_value'])}"
        for text in (row["prompt"], f"{number(row['best_similarity'])} (cosine, px)", numbers, row["prompt_id"]):
            assert text in page, text


@pytest.mark.parametrize("text", [*HOSTILE, *TEXTS.values()])
def test_hostile_text_changes_no_markup(known: dict[str, Any], text: str) -> None:
    page = render(with_text(known, text), no_picture)
    assert shape(page) == shape(render(with_text(known, "benign"), no_picture))
    assert not set("\u202e\u2066\x1b\x00\r") & set(page)


def test_hostile_text_beside_a_picture_changes_no_markup(rows: Rows, facts: Facts, tmp_path: Path) -> None:
    known = facts(rows, told(show_images=True))
    pages = [
        render(with_text(known, text), lambda path: (tmp_path / path).read_bytes())
        for text in ("benign", "x onload=alert(1) y", '" onload="alert(1)')
    ]
    assert "<img" in pages[0]
    assert shape(pages[0]) == shape(pages[1]) == shape(pages[2])


def test_a_control_character_is_seen(known: dict[str, Any]) -> None:
    known["findings"]["rows"][0]["prompt"] = "evil \u202e right to left"
    assert "evil \\u202e right to left" in render(known, no_picture)


def test_the_page_loads_nothing(rows: Rows, facts: Facts, tmp_path: Path) -> None:
    page = render(facts(rows, told(show_images=True)), lambda path: (tmp_path / path).read_bytes())
    tree = TREES.parse(page)
    loads = [e.attrib[name] for e in tree.iter() for name in ("src", "href", "action", "data") if name in e.attrib]
    assert loads
    assert all(value.startswith("data:image/png;base64,") for value in loads)
    policy = next(e.attrib["content"] for e in tree.iter("meta") if "http-equiv" in e.attrib)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not re.search(r"<script|url\(|@import", page)


def test_pictures_are_embedded_only_on_request(rows: Rows, facts: Facts, tmp_path: Path) -> None:
    hidden = render(facts(rows), no_picture)
    assert hidden.count("picture hidden") == 4
    found = facts(rows, told(show_images=True))
    page = render(found, lambda path: (tmp_path / path).read_bytes())
    first, second = (decode(base64.b64decode(data)) for data in re.findall(r"base64,([^\"]+)", page)[:2])
    best = found["findings"]["rows"][0]
    assert (first == decode((tmp_path / best["best_image_path"]).read_bytes())).all()
    assert (second == decode((tmp_path / best["thumbnail_path"]).read_bytes())).all()
    assert best["best_image_sha256"][:16] in hidden


def test_a_changed_or_missing_picture_is_no_evidence(rows: Rows, facts: Facts, tmp_path: Path) -> None:
    found = facts(rows, told(show_images=True))
    with pytest.raises(IntegrityError, match="not the one"):
        render(found, lambda path: (tmp_path / rows["samples"][4]["image_path"]).read_bytes())
    (tmp_path / found["findings"]["rows"][0]["best_image_path"]).unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        render(found, lambda path: (tmp_path / path).read_bytes())


def test_the_page_is_short_and_the_csv_whole(known: dict[str, Any]) -> None:
    known["run"]["settings"]["report"]["max_findings"] = 1
    page = render(known, no_picture)
    assert page.count('<article class="finding">') == 1
    assert "all stand in findings.csv" in page
    listed = list(csv.DictReader(io.StringIO(findings_csv(known))))
    assert [row["prompt_id"] for row in listed] == ["a0", "a5"]


@pytest.mark.parametrize("start", list("=+-@\t\r\n"))
def test_no_cell_of_the_csv_is_a_formula(known: dict[str, Any], start: str) -> None:
    known["findings"]["rows"][0]["prompt"] = f"{start}cmd|' /C calc'!A0"
    cells = [cell for line in csv.reader(io.StringIO(findings_csv(known), newline="")) for cell in line]
    assert f"'{start}cmd|' /C calc'!A0" in cells
    assert not any(cell.startswith(start) for cell in cells)


def test_a_run_with_nothing_in_it_says_undefined(rows: Rows, facts: Facts) -> None:
    found = facts({name: [] for name in rows})
    assert found["reconciles"]
    undefined = ("fpr_low", "fpr_high", "smallest_p", "flag_line")
    assert {found["calibration"][name] for name in undefined} == {None}
    assert all(step.get("rate") is None for step in found["flow"])
    text = re.sub(r"<[^>]+>", " ", render(found, no_picture).split("</style>")[1])
    assert "undefined" in text
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_nothing_found_is_said_of_the_generated_ones_only(rows: Rows, facts: Facts) -> None:
    for row in rows["matches"]:
        row["band"] = "none"
    page = render(facts(rows), no_picture)
    assert "None of the 2 flagged prompts and 4 controls made the model produce a picture, of 2 each" in page
    assert "No picture was compared of the other 4 of 10 audited prompts" in page


def test_the_rule_of_the_flags_is_named(known: dict[str, Any]) -> None:
    by_p = render(known, no_picture)
    known["calibration"]["flag_by"] = "q"
    by_q = render(known, no_picture)
    assert "flagged at a false-positive rate of 1.00%" in by_p
    assert "flagged at a false-discovery rate of 10.0%" in by_q
    assert "false-positive rate of" not in by_q


def test_what_memorised_calibration_prompts_cost_is_said(known: dict[str, Any]) -> None:
    check = known["calibration_check"] | {"n": 3, "copied": ["a"], "flagged": 7}
    pages = [render(known | {"calibration_check": check | {"flagged_without": n}}, no_picture) for n in (7, 9)]
    assert "without them as many prompts would be flagged." in pages[0]
    assert "without them 9 prompts would be flagged instead of 7." in pages[1]


def test_the_machine_is_told_in_words(known: dict[str, Any]) -> None:
    assert "<td>2 cores of x with bfloat16, 1.5 GiB, y, PyTorch 2</td>" in render(known, no_picture)


def test_what_the_bound_leaves_out_is_said(known: dict[str, Any]) -> None:
    page = render(known, no_picture)
    assert "1 prompts without a score are outside this bound" in page
    assert "counts as a copy" not in page
    known["controls"]["strata"][0]["not_examined"] = 1
    assert "A control without all its pictures counts as a copy" in render(known, no_picture)


@settings(max_examples=20, deadline=None)
@given(
    low=st.floats(1e-300, 1e300),
    ratio=st.floats(1.0001, 1e6),
    counts=st.lists(st.integers(0, 10**7), min_size=1, max_size=40),
    line=st.none() | st.floats(-1e300, 1e300),
)
def test_any_histogram_stays_in_its_frame(low: float, ratio: float, counts: list[int], line: float | None) -> None:
    edges = [low * ratio ** (i / len(counts)) for i in range(len(counts) + 1)]
    data = {
        "edges": edges,
        "audit": counts,
        "calibration": counts[::-1],
        "metric": "<m>",
        "line": {"says": "<s>", "at": line},
    }
    svg = histogram(data)
    numbers = [float(v) for v in re.findall(r' (?:x|y|x1|x2|y1|y2|width|height)="([^"]*)"', svg)]
    assert all(-10 <= v <= 1000 for v in numbers)
    assert svg.count("<rect") == len(counts)
    assert "&lt;m&gt;" in svg


HELD = {
    "references": 90,
    "duplicates": 2,
    "rejected": 4,
    "not_looked_at": {".tar": 1, ".txt": 5},
    "training_size": None,
}


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (None, "What part of the training pictures the index holds is not recorded"),
        (
            HELD,
            "The index holds 90 of 100 files that it was built from (90.00%); "
            "4 were rejected, 5 .txt, 1 .tar not looked at; 2 more repeat one of them.",
        ),
        (HELD | {"training_size": 3000}, "The index holds 90 of 3,000 training pictures (3.00%); 4 were rejected"),
        (
            HELD | {"references": 3_000_000, "not_looked_at": {}, "rejected": 1, "duplicates": 0},
            "The index holds 3,000,000 of 3,000,001 files that it was built from (99.99%); 1 was rejected.",
        ),
        (
            HELD | {"rejected": 0, "not_looked_at": {}, "duplicates": 0},
            "The index holds 90 of 90 files that it was built from (100%).",
        ),
        (HELD | {"training_size": 5_850_000_000}, "of 5,850,000,000 training pictures (less than 0.01%)"),
    ],
)
def test_the_page_says_what_part_of_the_training_set_the_index_holds(
    known: dict[str, Any], counts: dict[str, Any] | None, sentence: str
) -> None:
    page = html.unescape(render(known | {"holding": holding(counts)}, no_picture))
    lead, scope = page.split("<h2>", 2)[:2]
    assert (sentence in lead) == (counts is not None)
    assert sentence in scope
    assert "No copy means no copy of what the index holds." in page


def test_what_the_index_holds_is_told_as_the_run_has_it(known: dict[str, Any], rows: Rows, facts: Facts) -> None:
    assert known["holding"] is None  # of a run that was made before it was counted
    run = told()
    run["index"] |= {"holds": HELD}
    assert facts(rows, run)["holding"] == holding(HELD)


def test_the_page_names_the_weights_of_the_descriptor(rows: Rows, facts: Facts) -> None:
    run = told()
    run["index"] |= {"weights": {"px": {"file": "sscd.pt", "sha256": "ab" * 32, "vouched_by": "the user"}}}
    page = html.unescape(render(facts(rows, run), no_picture))
    assert f"(weights sscd.pt, <code>sha256 {'ab' * 32}</code>, vouched for by the user)" in page
    run["index"] |= {"weights": None}
    assert "vouched" not in render(facts(rows, run), no_picture)


def test_a_kind_of_file_is_text_from_outside(known: dict[str, Any]) -> None:
    for kind in HOSTILE:
        hostile, benign = (
            render(known | {"holding": holding(HELD | {"not_looked_at": {text: 1}})}, no_picture)
            for text in (kind, "benign")
        )
        assert shape(hostile) == shape(benign)


def test_of_kinds_the_most_frequent_are_named(known: dict[str, Any]) -> None:
    counts = HELD | {"not_looked_at": {f".k{n}": n for n in range(1, 12)}}
    page = html.unescape(render(known | {"holding": holding(counts)}, no_picture))
    assert "4 were rejected, 11 .k11, 10 .k10, 9 .k9, 8 .k8, 7 .k7, 6 .k6, 5 .k5, 4 .k4, … not looked at" in page
