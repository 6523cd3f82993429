"""Sign a package: a DSSE envelope around an in-toto statement that names every file with its sha256.

Why not PyPI's `model-signing`: signing with a local key would install 15 packages (sigstore, tuf, Rekor's types and more) for
transparency logs, which a local key does not use. `cryptography` is there already, for MLflow. The envelope is the standard one
that `model-signing` uses too, so other tools for DSSE can check it. Ed25519 signatures depend on the key and the content alone:
equal packages stay equal bytes.
"""

import base64
import json
import os
from pathlib import Path

from luthier.artefacts import canonical_json, hash_of, hash_of_file
from luthier.errors import UserError
from luthier.packages.contents import SIGNATURE
from luthier.packages.signatures import STATEMENT, signed_bytes, statement


def sign(folder: Path, key: Path) -> None:
    """Write the signature of a folder's files into it; the manifest comes later and names the signature too.

    Args:
        folder: the package while it is staged.
        key: a private key, Ed25519 in PEM.

    Raises:
        UserError: if the key cannot be read or is of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    password = os.environ.get("LUTHIER_SIGNING_PASSWORD")
    try:
        private = load_pem_private_key(key.read_bytes(), password.encode() if password else None)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"deployment.signing_key: {key} cannot be read as a private key in PEM: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise UserError(
            f"deployment.signing_key: {key} is no Ed25519 key; make one with: openssl genpkey -algorithm ed25519 -out private.pem"
        )
    hashes = {path.name: hash_of_file(path) for path in folder.iterdir()}
    payload = canonical_json(statement(hashes)).encode()
    envelope = {
        "payloadType": STATEMENT,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {
                "keyid": hash_of(private.public_key().public_bytes_raw()),
                "sig": base64.b64encode(private.sign(signed_bytes(payload))).decode(),
            }
        ],
    }
    (folder / SIGNATURE).write_text(json.dumps(envelope, indent=2), encoding="utf-8")
