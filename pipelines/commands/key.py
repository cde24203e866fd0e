"""`sharpaudit key`: the key pair that a team signs its audits with."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import PATH, passphrase


@click.group()
def key() -> None:
    """Make the key pair that signs audits."""


@key.command()
@click.argument("file", type=PATH)
def make(file: Path) -> None:
    """Write a new Ed25519 key pair: FILE, to be kept secret, and FILE.pub, for whoever verifies.

    SHARPAUDIT_KEY_PASSPHRASE, where it is set, encrypts the private key.

    \b
    Example: sharpaudit key make auditor.pem
    """
    from sharpaudit.evidence.keys import make_key, read_public

    public = make_key(file, passphrase())
    click.echo(f"{file}: private key, mode 0600; keep it out of the run folder and out of version control")
    click.echo(f"{public}: public key {read_public(public).keyid}; give it to whoever verifies")
