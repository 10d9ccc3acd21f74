"""Keys and tokens: `titan token --role customer` prints a signed JWT for trying things.

The pair of keys is made by `up`, per clone. A deployment gives the API its identity provider's public keys (TITAN_JWT_JWKS).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import sys
import time
from pathlib import Path
from uuid import UUID, uuid4

from infra.errors import StackError
from infra.settings import Settings, settings

ROLES = ("customer", "seller", "admin", "analyst", "service")
ALGORITHM = "ES256"
HOURS_DEFAULT = 12


def make_keys(to: Settings) -> None:
    """The signing key, the API's JWKS and the master key of personal data, each only when it is missing."""
    from joserfc.jwk import ECKey

    if not to.jwt_private_key.exists():
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": ALGORITHM, "kid": secrets.token_hex(8)}, private=True)
        _write(to.jwt_private_key, json.dumps(key.as_dict(private=True)))
        _write(to.jwt_jwks, json.dumps({"keys": [key.as_dict(private=False)]}, indent=1))
    if not to.master_key.exists():
        _write(to.master_key, base64.b64encode(secrets.token_bytes(32)).decode())


def token(
    to: Settings, role: str, subject: UUID, scopes: tuple[str, ...] = (), seconds: int = HOURS_DEFAULT * 3600
) -> str:
    """A JWT signed with ES256: iss, aud, sub, role, scope, iat, exp. Without scopes the role's own apply."""
    from joserfc import jwt
    from joserfc.jwk import ECKey

    try:
        key = ECKey.import_key(json.loads(to.jwt_private_key.read_text()))
    except FileNotFoundError:
        raise StackError(
            f"there is no key at {to.jwt_private_key}: run titan up once, or set TITAN_JWT_PRIVATE_KEY"
        ) from None
    now = int(time.time())
    claims = {
        "iss": to.jwt_issuer,
        "aud": to.jwt_audience,
        "sub": str(subject),
        "role": role,
        "iat": now,
        "exp": now + seconds,
        **({"scope": " ".join(scopes)} if scopes else {}),
    }
    return str(jwt.encode({"alg": ALGORITHM, "kid": key.kid, "typ": "JWT"}, claims, key))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="titan token", description=__doc__)
    parser.add_argument("--role", choices=ROLES, default="customer")
    parser.add_argument("--sub", type=UUID, help="whose token: a UUID; without it a new one, printed on standard error")
    parser.add_argument("--scope", nargs="*", default=(), help="without it what the role may do")
    parser.add_argument("--hours", type=float, default=HOURS_DEFAULT)
    given = parser.parse_args(argv)
    subject = given.sub or uuid4()
    print(token(settings(), given.role, subject, tuple(given.scope), int(given.hours * 3600)))
    if given.sub is None:
        print(f"--sub {subject}", file=sys.stderr)
    return 0


def _write(file: Path, text: str) -> None:
    """Whole or not at all, and readable by its owner alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    new.replace(file)
