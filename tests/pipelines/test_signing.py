"""Who vouches for a run: signatures that need no code of ours to check, and earlier seals that stay on record."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pipelines.cli import cli
from pipelines.operations.verify import faults
from sharpaudit.evidence.attest import attest, read_attestation
from sharpaudit.evidence.keys import make_key, read_public, read_signer
from sharpaudit.evidence.seal import ATTESTATION, MANIFEST, REVISION, evidence, revision, seal, sha256_of
from sharpaudit.tables.records import canonical
from tests.support.audits import audit, edited_report, flip


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "auditor.pem"
    path.parent.mkdir()
    assert CliRunner().invoke(cli, ["key", "make", str(path)]).exit_code == 0
    return path


def test_a_run_may_be_unsigned_and_says_so(copy: Path, key: Path) -> None:
    outcome = CliRunner().invoke(cli, ["verify", str(copy)])
    assert outcome.exit_code == 0
    assert f"revision {revision(copy)['revision']} of the seal" in outcome.output
    assert "unsigned" in outcome.output
    outcome = CliRunner().invoke(cli, ["verify", str(copy), "--public-key", f"{key}.pub"])
    assert outcome.exit_code == 1
    assert "signed by nobody" in outcome.output


def test_a_signed_run_is_vouched_for_by_its_key_alone(config_path: Path, copy: Path, key: Path) -> None:
    """A finished run called with a key is signed and nothing else; openssl's own verification agrees."""
    sealed_before = (copy / MANIFEST).read_bytes()
    audit(config_path, copy, signer=read_signer(key))
    assert (copy / MANIFEST).read_bytes() == sealed_before
    public = read_public(key.with_name("auditor.pem.pub"))
    assert faults(copy, public) == []
    outcome = CliRunner().invoke(cli, ["verify", str(copy), "--public-key", f"{key}.pub"])
    assert outcome.exit_code == 0, outcome.output
    assert f"signed by the key {public.keyid}, as required" in outcome.output
    assert "not checked" in CliRunner().invoke(cli, ["verify", str(copy)]).output
    other = make_key(key.with_name("other.pem"))
    assert any("not signed by the key" in line for line in faults(copy, read_public(other)))


def test_the_envelope_is_what_other_tools_expect(copy: Path, key: Path, tmp_path: Path) -> None:
    """The signature holds over DSSE's pre-authentication encoding, by the standard's own formula, without our code."""
    outcome = CliRunner().invoke(cli, ["sign", str(copy), "--key", str(key)])
    assert outcome.exit_code == 0, outcome.output
    envelope = json.loads((copy / ATTESTATION).read_bytes())
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    public = load_pem_public_key(key.with_name("auditor.pem.pub").read_bytes())
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), message)
    told = json.loads(payload)
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    digest = hashlib.sha256((copy / MANIFEST).read_bytes()).hexdigest()
    assert told["subject"] == [{"name": MANIFEST, "digest": {"sha256": digest}}]
    assert told["predicate"]["seal"]["revision"] == revision(copy)["revision"]


def forged_payload(root: Path) -> None:
    envelope = json.loads((root / ATTESTATION).read_bytes())
    told = json.loads(base64.b64decode(envelope["payload"]))
    told["predicate"]["flow"]["flagged"] = 0
    envelope["payload"] = base64.b64encode(canonical(told)).decode()
    (root / ATTESTATION).write_text(json.dumps(envelope))


def other_signature(root: Path) -> None:
    envelope = json.loads((root / ATTESTATION).read_bytes())
    signature = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
    signature[0] ^= 1
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    (root / ATTESTATION).write_text(json.dumps(envelope))


def no_attestation(root: Path) -> None:
    (root / ATTESTATION).unlink()


def no_envelope(root: Path) -> None:
    (root / ATTESTATION).write_text('{"payload": 3}')


def sealed_anew_with_another_report(root: Path) -> None:
    edited_report(root)
    (root / MANIFEST).unlink()
    seal(root)


@pytest.mark.parametrize(
    "tamper",
    [forged_payload, other_signature, no_attestation, no_envelope, sealed_anew_with_another_report],
    ids=lambda f: f.__name__,
)
def test_a_signature_does_not_outlive_what_it_signed(copy: Path, key: Path, tamper: Callable[[Path], None]) -> None:
    attest(copy, read_signer(key))
    public = read_public(key.with_name("auditor.pem.pub"))
    assert faults(copy, public) == []
    tamper(copy)
    assert any(line.startswith(f"{copy / ATTESTATION}:") for line in faults(copy, public))


def test_what_is_not_as_sealed_is_not_signed(copy: Path, key: Path) -> None:
    image = flip(sorted((copy / "images").rglob("*.png"))[0])
    before = (copy / ATTESTATION).read_bytes()
    outcome = CliRunner().invoke(cli, ["sign", str(copy), "--key", str(key)])
    assert outcome.exit_code == 1
    assert image.name in outcome.output
    assert (copy / ATTESTATION).read_bytes() == before


def test_an_earlier_seal_stays_on_record(config_path: Path, copy: Path, key: Path) -> None:
    """The second revision names the first, which is kept with its attestation; neither can be dropped or changed."""
    attest(copy, read_signer(key))
    first, number = (copy / MANIFEST).read_bytes(), revision(copy)["revision"]
    audit(config_path, copy, "triage.alpha=0.1", update=True)
    assert revision(copy)["revision"] == number + 1
    assert revision(copy)["previous"] == hashlib.sha256(first).hexdigest()
    kept = copy / "seals" / f"{number:04}.sha256"
    assert kept.read_bytes() == first
    assert read_attestation(copy, f"seals/{number:04}.dsse.json").signatures
    assert not read_attestation(copy).signatures
    assert faults(copy) == []
    for change in (lambda: kept.write_bytes(first + b"0" * 64 + b"  more\n"), kept.unlink):
        change()
        (copy / MANIFEST).unlink()
        write_manifest(copy)
        attest(copy)
        assert any(line.startswith(f"{copy / REVISION}:") for line in faults(copy))


def write_manifest(root: Path) -> None:
    """The seal made to fit whatever lies there, without another revision."""
    (root / MANIFEST).write_text("".join(f"{sha256_of(root / name)}  {name}\n" for name in evidence(root)))
