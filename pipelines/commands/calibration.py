"""`sharpaudit calibration`: harmless prompts for those who have none."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import PATH


@click.group()
def calibration() -> None:
    """Make harmless prompts of a corpus's style."""


@calibration.command()
@click.argument("prompts", type=PATH)
@click.option("--out", required=True, type=PATH, help="A new .csv with the column prompt.")
@click.option("--column", default="prompt", show_default=True, help="Column of PROMPTS with the captions.")
@click.option("--delimiter", default=",", show_default=True, help="Of a csv.")
@click.option(
    "--n",
    "wanted",
    default=1_999,
    show_default=True,
    type=click.IntRange(1),
    help="Candidates; 1,999 fit on 1,000 and calibrate on 999.",
)
@click.option("--seed", default=0, show_default=True, type=int)
def make(prompts: Path, out: Path, column: str, delimiter: str, wanted: int, seed: int) -> None:
    """Recombine the captions of PROMPTS (file, folder or pattern), words and all, into candidates that are not there.

    They are for [calibration] file. Nobody has looked at them: read some, and see in the report which of those at the
    flag line copy a training picture.

    \b
    Example: sharpaudit calibration make prompts.csv --out harmless.csv
    """
    import csv
    import io

    from sharpaudit.config import as_delimiter
    from sharpaudit.corpus.check import check
    from sharpaudit.corpus.files import files_of
    from sharpaudit.corpus.read import read_rows
    from sharpaudit.corpus.recombine import recombine
    from sharpaudit.corpus.rows import Source
    from sharpaudit.errors import UserError
    from sharpaudit.tables.records import export_file

    if out.suffix != ".csv" or out.exists():
        raise UserError(f"{out}: {'exists already' if out.exists() else 'is no .csv'}; name a new .csv with --out")
    how = {"column": column, "delimiter": as_delimiter(delimiter)}
    sources = [Source(path.name, "audit", path, **how) for path in files_of(prompts)]
    texts = (check(row.prompt)[0] for source in sources for row in read_rows(source) if row.problem is None)
    captions = list(dict.fromkeys(text for text in texts if text is not None))
    found = recombine(captions, wanted, seed)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["prompt"])
    writer.writerows([candidate.text] for candidate in found)
    export_file(out, stream.getvalue().encode())
    changed = sum(candidate.changed for candidate in found) / len(found)
    click.echo(
        f"{out}: {len(found):,} candidates from {len(captions):,} captions, {changed:.0%} of their words drawn anew"
        + ("" if len(found) == wanted else f"; the corpus has no more combinations, {wanted:,} were asked for")
    )
