"""`sharpaudit sign`: sign a run that is finished."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import key_option, run_argument, signer_of


@click.command()
@run_argument
@key_option
def sign(run_folder: Path, key: Path | None) -> None:
    """Sign the finished RUN as it is sealed, once everything in it is found to be as sealed.

    \b
    Example: sharpaudit sign runs/quickstart --key auditor.pem
    """
    from pipelines.operations.verify import examine
    from sharpaudit.errors import UserError, printable
    from sharpaudit.evidence.attest import attest
    from sharpaudit.evidence.seal import ATTESTATION, revision
    from sharpaudit.tables.lock import hold

    signer = signer_of(key)
    if signer is None:
        raise UserError("no key: give --key FILE, or set SHARPAUDIT_KEY; `sharpaudit key make FILE` writes one")
    root = run_folder.absolute()
    # What an attestation says is made anew, so the one that is there does not count.
    verdict = examine(root)
    found = [line for line in verdict.faults if not line.startswith(f"{root / ATTESTATION}:")]
    for line in [*found, *verdict.notes]:
        click.echo(printable(line, 2000), err=True)
    if found:
        raise click.exceptions.Exit(1)
    with hold(root, lambda line: click.echo(line, err=True)):
        attest(root, signer)
    click.echo(f"{root / ATTESTATION}: revision {revision(root)['revision']} signed by {signer.public_key.keyid}")
