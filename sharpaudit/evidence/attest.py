"""The attestation: who says that this is the run, in a form that other tools read.

An in-toto Statement (v1) whose subject is the seal, with the run's identity and main figures as its predicate, in a
DSSE envelope (v1) signed by an Ed25519 key. Without a key the envelope carries no signature, and is said to be
unsigned: it then shows what the run claims, and nobody vouches for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signer

from sharpaudit.errors import IntegrityError
from sharpaudit.evidence.seal import ATTESTATION, MANIFEST, revision, sha256_of
from sharpaudit.tables.files import Files
from sharpaudit.tables.records import canonical, read_checksummed, replace_file

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:sharpaudit:memorisation-audit:v1"


def statement(root: Path) -> dict[str, Any]:
    """The statement about the run as it is sealed now. Raises IntegrityError where its own records are damaged."""
    facts_path = root / "report" / "facts.json"
    try:
        facts = json.loads(facts_path.read_bytes())
        told = facts["run"]
        predicate = {
            "tool": {"name": "sharpaudit", "version": told["sharpaudit_version"]},
            "seal": revision(root),
            "run": {"name": told["name"], "created": told["created"]},
            "stages": {
                name: entry["fingerprint"] for name, entry in read_checksummed(root / "run.json")["stages"].items()
            },
            "model": told["model"],
            "index": told["index"],
            "inputs": [{key: entry[key] for key in ("source", "sha256")} for entry in told["inputs"]],
            "flow": {step["step"]: step["n"] for step in facts["flow"]},
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{facts_path}: not the facts of a report; nothing can be attested") from error
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": MANIFEST, "digest": {"sha256": sha256_of(root / MANIFEST)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def attest(root: Path, signer: Signer | None = None, files: Files | None = None) -> None:
    """Write attestation.dsse.json for the present seal, signed where there is a key."""
    envelope = Envelope(canonical(statement(root)), PAYLOAD_TYPE, {})
    if signer is not None:
        envelope.sign(signer)
    replace_file(root / ATTESTATION, json.dumps(envelope.to_dict(), indent=1).encode() + b"\n", files)


def read_attestation(root: Path, name: str = ATTESTATION) -> Envelope:
    """The envelope. Raises IntegrityError where there is none, or none that can be read."""
    path = root / name
    try:
        return Envelope.from_dict(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: missing; `sharpaudit sign` writes it") from error
    # The library passes on whatever a malformed envelope makes of it.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: not a DSSE envelope") from error


def signed_by(root: Path, key: Key) -> bool:
    """Whether the present seal has an attestation that `key` signed."""
    try:
        envelope = read_attestation(root)
        envelope.verify([key], 1)
    except (IntegrityError, VerificationError):
        return False
    return envelope.payload == canonical(statement(root))
