"""API keys: from the environment, held as hashes, compared in constant time.

    LUTHIER_API_KEYS=alice:sk-0123456789abcdef,batch:sk-...     several, each with a name for the log, or without one
    LUTHIER_ADMIN_KEY=sk-...                                    for /admin, and for nothing else

No key is in a log, an error or a `repr`.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from luthier.errors import UserError

CLIENT_VARIABLE, ADMIN_VARIABLE = "LUTHIER_API_KEYS", "LUTHIER_ADMIN_KEY"
SHORTEST = 16
"""Characters of a key; what is shorter can be guessed."""
_NAMED = re.compile(r"([A-Za-z][\w.-]{0,31}):(.*)")


@dataclass(frozen=True)
class Keys:
    """Who may ask, and who may administer."""

    clients: tuple[tuple[str, bytes], ...] = field(repr=False)
    """Name and sha256 of each client's key."""
    admin: bytes | None = field(default=None, repr=False)
    """sha256 of the administrator's key; without one nobody administers."""
    made: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variable -> key that was made at this start because none was set: to be shown once, on the terminal alone."""

    def client(self, authorization: str | None) -> str | None:
        """Return the name of the client whose key a request carries; None if it carries none that is known.

        Args:
            authorization: the header, `Bearer KEY`.
        """
        given = _digest(authorization)
        # all are compared, so that the time does not tell which one is close
        names = [name for name, digest in self.clients if hmac.compare_digest(given, digest)]
        return names[0] if names else None

    def is_admin(self, authorization: str | None) -> bool:
        """Tell whether a request carries the administrator's key."""
        return self.admin is not None and hmac.compare_digest(_digest(authorization), self.admin)


def read_keys(environ: Mapping[str, str], host: str) -> Keys:
    """Read the keys.

    Where none are set and only this machine can reach the gateway, keys are made for this start.

    Args:
        environ: the process's environment.
        host: address that the gateway listens on.

    Raises:
        UserError: if others can reach the gateway and no key is set, or a key is short, given twice, or no text of ASCII.
    """
    problems: list[str] = []
    named = _clients(environ.get(CLIENT_VARIABLE, ""), problems)
    admin = environ.get(ADMIN_VARIABLE, "").strip()
    if admin:
        problems += _wrong(ADMIN_VARIABLE, admin)
        if admin in named.values():
            problems.append(f"{ADMIN_VARIABLE}: is also a key in {CLIENT_VARIABLE}; an administrator's key is nobody else's")
    if not named and not is_loopback(host):
        problems.append(f"{CLIENT_VARIABLE}: is not set, and others can reach {host}. Set it to keys, separated by commas")
    if problems:
        raise UserError("The keys of the gateway are not usable.\n  " + "\n  ".join(problems))
    made: dict[str, str] = {}
    if not named:
        named = {"local": made.setdefault(CLIENT_VARIABLE, _new_key())}
    if not admin and is_loopback(host):
        admin = made.setdefault(ADMIN_VARIABLE, _new_key())
    digests = tuple((name, hashlib.sha256(key.encode()).digest()) for name, key in named.items())
    return Keys(digests, hashlib.sha256(admin.encode()).digest() if admin else None, made)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches what listens on an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _clients(listed: str, problems: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, entry in enumerate((part.strip() for part in listed.split(",")), 1):
        if not entry:
            continue
        match = _NAMED.fullmatch(entry)
        name, key = (match[1], match[2].strip()) if match else (f"key-{number}", entry)
        where = f"{CLIENT_VARIABLE}, entry {number}"
        problems += _wrong(where, key)
        if name in found:
            problems.append(f"{where}: the name {name} is given twice")
        elif key in found.values():
            problems.append(f"{where}: this key is given twice")
        found[name] = key
    return found


def _wrong(where: str, key: str) -> list[str]:
    if len(key) < SHORTEST:
        return [f"{where}: is shorter than {SHORTEST} characters and can be guessed. `openssl rand -hex 24` makes one"]
    if not (key.isascii() and key.isprintable() and " " not in key):
        return [f"{where}: must be printable ASCII without spaces, as it travels in a header"]
    return []


def _new_key() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"


def _digest(authorization: str | None) -> bytes:
    scheme, _, key = (authorization or "").partition(" ")
    given = key.strip() if scheme.lower() == "bearer" else ""
    return hashlib.sha256(given.encode(errors="surrogatepass")).digest()


def first_key(environ: Mapping[str, str]) -> str:
    """Return the first client's key, for a client on the same machine.

    Raises:
        UserError: if there is none.
    """
    entry = environ.get(CLIENT_VARIABLE, "").split(",")[0].strip()
    if not entry:
        raise UserError(f"{CLIENT_VARIABLE} is not set: put the key into it with which the gateway was started.")
    named = _NAMED.fullmatch(entry)
    return named[2] if named else entry
