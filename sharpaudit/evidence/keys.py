"""Ed25519 keys as PEM files: the private one as PKCS #8, which may be encrypted, the public one beside it."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from sharpaudit.errors import UserError
from sharpaudit.tables.files import Files

PASSPHRASE = "SHARPAUDIT_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable
"""Environment variable with the passphrase of a private key."""


def make_key(path: Path, passphrase: bytes | None = None) -> Path:
    """Write a new private key to `path`, mode 0600, and the public one beside it, with suffix .pub; returns the latter,
    whose mode is what the umask leaves.

    Raises UserError where either exists: a key is never overwritten.
    """
    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists():
            raise UserError(f"{file}: exists already; a key is never overwritten, name another file")
    key, files = Ed25519PrivateKey.generate(), Files()
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    files.write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    files.write(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o666)
    return public


def read_signer(path: Path, passphrase: bytes | None = None) -> CryptoSigner:
    """What signs with the private key in a file. Raises UserError for anything else."""
    data = _read(path)
    try:
        key = load_pem_private_key(data, passphrase)
    except TypeError as error:
        told = f"is encrypted: set {PASSPHRASE}" if passphrase is None else f"is not encrypted: unset {PASSPHRASE}"
        raise UserError(f"{path}: the key {told}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "or the passphrase is wrong" if passphrase else "`sharpaudit key make FILE` writes one"
        raise UserError(f"{path}: not a private key in PEM form; {hint}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: not an Ed25519 key; `sharpaudit key make FILE` writes one")
    return CryptoSigner(key)


def read_public(path: Path) -> SSlibKey:
    """The public key in a file. Raises UserError for anything else."""
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: not a public key in PEM form; give the .pub file beside the private key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path}: not an Ed25519 key")
    return SSlibKey.from_crypto(key)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the key: {error.strerror}") from error
