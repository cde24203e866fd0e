"""`sharpaudit verify`: is a run what it says, file by file."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import PATH, run_argument


@click.command()
@run_argument
@click.option("--replay", "n", type=click.IntRange(0), default=0, show_default=True, help="Findings to make again.")
@click.option("--public-key", type=PATH, help="PEM file of who must have signed the run.")
def verify(run_folder: Path, n: int, public_key: Path | None) -> None:
    """Check RUN against its seal, its manifests and itself; name every file that is not what it should be.

    Tables, pictures, identities and the report are also held against each other, since a seal can be written anew.
    Neither model nor index is needed, but for --replay. Exit code 1 where something is wrong. Of a run that another
    version made all is checked but the page of its report, and that is said.

    \b
    Example: sharpaudit verify runs/quickstart --replay 2 --public-key auditor.pem.pub
    """
    from pipelines.operations.verify import examine, replays
    from sharpaudit.errors import printable
    from sharpaudit.evidence.keys import read_public
    from sharpaudit.evidence.seal import read_seal

    root = run_folder.absolute()
    verdict = examine(root, read_public(public_key) if public_key else None)
    found = verdict.faults
    for line in found:
        click.echo(printable(line, 2000), err=True)
    for line in verdict.notes:
        click.echo(printable(line, 2000))
    same = True
    for prompt_id, agrees in [] if found else replays(root, n):
        click.echo(f"{prompt_id}: {'reproduced' if agrees else 'NOT reproduced'}")
        same = same and agrees
    if found or not same:
        raise click.exceptions.Exit(1)
    agree = "pictures and identities agree" if verdict.notes else "pictures, identities and report agree"
    click.echo(f"{len(read_seal(root)):,} files are as sealed; tables, {agree}")
    click.echo(_vouched(root, checked=public_key is not None))


def _vouched(root: Path, *, checked: bool) -> str:
    """One line: which revision of the seal this is, and who signed it."""
    from sharpaudit.evidence.attest import read_attestation
    from sharpaudit.evidence.seal import revision

    told, keys = revision(root), sorted(read_attestation(root).signatures)
    seal = f"revision {told['revision']} of the seal, of {told['sealed_at']}"
    if not keys:
        return f"{seal}: unsigned, nobody vouches for it"
    signed = f"{seal}: signed by the key {', '.join(keys)}"
    return f"{signed}, as required" if checked else f"{signed}, not checked: give --public-key"
