"""Key files: what is written can be read, and whatever else is given is refused in one line."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sharpaudit.errors import UserError
from sharpaudit.evidence.keys import make_key, read_public, read_signer


def test_a_pair_is_one_key_and_the_private_half_is_for_its_owner_alone(tmp_path: Path) -> None:
    public = make_key(tmp_path / "a.pem")
    assert read_signer(tmp_path / "a.pem").public_key.keyid == read_public(public).keyid
    assert stat.S_IMODE((tmp_path / "a.pem").stat().st_mode) == 0o600
    other = make_key(tmp_path / "b.pem")
    assert read_public(other).keyid != read_public(public).keyid


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    make_key(tmp_path / "a.pem")
    before = (tmp_path / "a.pem").read_bytes()
    with pytest.raises(UserError, match=r"a\.pem: exists already"):
        make_key(tmp_path / "a.pem")
    (tmp_path / "a.pem").unlink()
    with pytest.raises(UserError, match=r"a\.pem\.pub: exists already"):
        make_key(tmp_path / "a.pem")
    assert before


def test_a_passphrase_is_asked_for_by_name(tmp_path: Path) -> None:
    make_key(tmp_path / "a.pem", b"correct horse")
    assert read_signer(tmp_path / "a.pem", b"correct horse").sign(b"x").signature
    with pytest.raises(UserError, match="is encrypted: set SHARPAUDIT_KEY_PASSPHRASE"):
        read_signer(tmp_path / "a.pem")
    with pytest.raises(UserError, match="passphrase is wrong"):
        read_signer(tmp_path / "a.pem", b"battery")
    make_key(tmp_path / "b.pem")
    with pytest.raises(UserError, match="is not encrypted: unset"):
        read_signer(tmp_path / "b.pem", b"battery")


def test_other_files_are_no_keys(tmp_path: Path) -> None:
    public = make_key(tmp_path / "a.pem")
    with pytest.raises(UserError, match="cannot read the key: No such file"):
        read_signer(tmp_path / "none.pem")
    with pytest.raises(UserError, match="not a private key in PEM form"):
        read_signer(public)
    with pytest.raises(UserError, match=r"give the \.pub file"):
        read_public(tmp_path / "a.pem")
    other = generate_private_key(SECP256R1())
    (tmp_path / "ec.pem").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "ec.pub").write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for read, name in ((read_signer, "ec.pem"), (read_public, "ec.pub")):
        with pytest.raises(UserError, match="not an Ed25519 key"):
            read(tmp_path / name)
