"""What a signature of a package says, and whether it is the right one."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.artefacts import MANIFEST
from luthier.errors import UserError
from luthier.packages.contents import SIGNATURE, Found, strict

STATEMENT = "application/vnd.in-toto+json"


def statement(hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return what a signature says: these files have these hashes (in-toto Statement v1, https://in-toto.io/Statement/v1)."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in sorted(hashes.items())
            if name not in (SIGNATURE, MANIFEST)
        ],
        "predicateType": "urn:luthier:package:1",
        "predicate": {},
    }


def signed_bytes(payload: bytes) -> bytes:
    """Return the bytes that are signed (DSSE's pre-authentication encoding, https://github.com/secure-systems-lab/dsse)."""
    return b"DSSEv1 %d %s %d %s" % (len(STATEMENT), STATEMENT.encode(), len(payload), payload)


def check_signature(found: Found, key: Path) -> None:
    """Note what is wrong with a package's signature, which a public key (Ed25519, PEM) must have made.

    Raises:
        UserError: if the key itself is none.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        public = load_pem_public_key(key.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{key} holds no public key in PEM: {error}") from error
    if not isinstance(public, Ed25519PublicKey):
        raise UserError(f"{key} is no Ed25519 key; make one with: openssl genpkey -algorithm ed25519 -out private.pem")
    if SIGNATURE not in found.sizes:
        found.problems.append(f"{SIGNATURE}: is missing: the package is not signed, and a key is required")
        return
    try:
        envelope = found.values[SIGNATURE]
        payload = base64.b64decode(envelope["payload"], validate=True)
        public.verify(base64.b64decode(envelope["signatures"][0]["sig"], validate=True), signed_bytes(payload))
        said = strict(payload.decode("utf-8"))
    except InvalidSignature:
        found.problems.append(f"{SIGNATURE}: was not made with the key of {key}")
        return
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        found.problems.append(f"{SIGNATURE}: is no signature (DSSE envelope)")
        return
    if said != statement(found.hashes):
        found.problems.append(f"{SIGNATURE}: vouches for other files than these")
