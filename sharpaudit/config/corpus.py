"""[corpus] and [calibration]: which prompts are audited, and which harmless ones they are held against."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, field_validator, model_validator

from sharpaudit.config.base import Section, given


def as_delimiter(told: Any) -> Any:
    """A tab that is written as a backslash and a t, as a shell and a TOML literal leave it, as the tab it means."""
    return "\t" if told == "\\t" else told


Delimiter = Annotated[str, BeforeValidator(as_delimiter)]


class CorpusConfig(Section):
    """The prompts under audit."""

    audit: tuple[str, ...] = given(min_length=1)
    """File of prompts: .csv, .jsonl, .parquet or .txt (one prompt a line), also as .gz and .zst; a folder of such files
    or a pattern such as shards/*.csv; or a list of those. What `sharpaudit extend` adds to a run stays part of it."""
    positive_controls: str | None = given(None)
    """Prompts known to be memorised, audited apart: a file, a folder or a pattern."""
    column: str = given("prompt")
    """Column of the prompt in csv, jsonl and parquet files."""
    delimiter: Delimiter = given(",", min_length=1, max_length=1)
    """Separator of csv files; .tsv files have tabs, and a first line such as sep=; names its own."""
    id_column: str | None = given(None)
    """Column whose value becomes `external_id`."""
    family_column: str | None = given(None)
    """Column that names a prompt's family; without it, family is the prompt without case and punctuation."""
    near_duplicates: float | None = given(None, gt=0, le=1)
    """Makes one family of prompts, harmless ones included, whose 4-letter pieces overlap by at least this share: of
    prompts of 60 letters .85 joins those that differ in one letter, .75 in one word. Families that a column names do
    not merge; prompts without a name join them."""
    style_column: str | None = given(None)
    """Column that names a prompt's style: p is then the rank among calibration prompts of the same style. Prompts of a
    style with too few of them (1/alpha - 1) rank among all and are uncalibrated: counted apart, no rate is claimed."""
    labels: tuple[str, ...] = given(())
    """Columns that pass through into `origins.labels`."""

    @field_validator("audit", mode="before")
    @classmethod
    def _one_or_several(cls, asked: Any) -> Any:
        return (asked,) if isinstance(asked, str) else asked

    @model_validator(mode="after")
    def _told_apart(self) -> CorpusConfig:
        twice = next((path for path in self.audit if self.audit.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is audited twice; name it once")
        return self


class CalibrationConfig(Section):
    """Harmless prompts of the audited corpus's style: one file split by family, or a file for each use. A folder or a
    pattern may stand for its files, as in [corpus]."""

    file: str | None = given(None)
    fit: str | None = given(None)
    calibrate: str | None = given(None)
    column: str | None = given(None)
    """As in [corpus], which it defaults to."""
    delimiter: Delimiter | None = given(None, min_length=1, max_length=1)
    family_column: str | None = given(None)
    style_column: str | None = given(None)

    @model_validator(mode="after")
    def _file_or_both(self) -> CalibrationConfig:
        both = self.fit is not None and self.calibrate is not None
        either = self.fit is not None or self.calibrate is not None
        if (self.file is not None and either) or (self.file is None and not both):
            raise ValueError("give either file (it is split by family), or both fit and calibrate")
        return self
