"""What a section of the report is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sharpaudit.report.reading import Entry
from sharpaudit.tables.query import Connection


@dataclass(frozen=True)
class ReportSection:
    """A section that a stage adds to the report, behind ours.

    name: of its facts, the stage's. facts: what it says, as JSON, from the tables. template: what is shown, in Jinja
    with autoescape, where `own` are these facts, `facts` those of the whole report and `run` what no table holds.
    """

    name: str
    title: str
    facts: Callable[[Connection], Entry]
    template: str
