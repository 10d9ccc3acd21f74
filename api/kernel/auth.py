"""Who calls: an ES256 token checked against a set of public keys, its role, and what the role may do.

The keys come from two places: a file (`titan token` signs with one of those, an identity provider of a deployment with others), and
the table to which the service auth publishes its own. A key is good for its own issuer's tokens alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from fastapi import Security
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security.base import SecurityBase
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from psycopg import Error as DatabaseError
from psycopg_pool import PoolTimeout
from starlette.requests import Request

from api.kernel.problems import Problem, unauthenticated

if TYPE_CHECKING:
    from api.kernel.call import Call
    from api.kernel.vault import Pool

log = logging.getLogger(__name__)

T = TypeVar("T")

# What a role may do, on every resource alike: a scope is `<resource>:<verb>`, so that a new domain needs no entry here.
#   read, write  one's own things      sell     the catalogue, its prices and stock      analyse  figures over everybody
#   settle       machines: payments, fulfilment         any      see and change what others own
#   govern       who may do what: roles, clients, keys
ROLES: dict[str, frozenset[str]] = {
    "customer": frozenset({"read", "write"}),
    "seller": frozenset({"read", "write", "sell"}),
    "analyst": frozenset({"read", "analyse"}),
    "service": frozenset({"read", "write", "sell", "settle", "any"}),
    "admin": frozenset({"read", "write", "sell", "settle", "analyse", "any", "govern"}),
}
VERBS = frozenset().union(*ROLES.values())

TOKEN_CHARS_MAX = 4096
LEEWAY_S = 10  # between two machines' clocks
CACHED_TOKENS_MAX = 20_000
CACHED_S_MAX = 300  # a key taken out of the set stops working within this
KEYS_LOOK_S = 1.0  # the least time between two looks at the file of keys, or at the table
KEYS_KEPT_S = 60.0  # the table is looked at so often anyway


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. `scopes`: what the token itself narrows its role to; None for all that the role may do."""

    id: UUID
    role: str
    scopes: frozenset[str] | None = None
    actor: str = field(init=False)
    """How events, logs and rate limits name the caller."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "actor", f"{'service' if self.role == 'service' else 'user'}:{self.id}")

    def may(self, scope: str) -> bool:
        """Whether `<resource>:<verb>` is allowed."""
        return scope.partition(":")[2] in ROLES[self.role] and (self.scopes is None or scope in self.scopes)


class UnknownKey(Problem):
    """A token of a key that is not known here, or not yet."""


class Keys:
    """The public keys that tokens may be signed with, and the tokens seen lately. `table` and `own_issuer`: where auth publishes
    its keys, and who it says it is."""

    def __init__(self, path: Path, issuer: str, audience: str, table: Pool | None = None, own_issuer: str = "") -> None:
        self._path, self._table = path, table
        self._filed: dict[str, ECKey] = {}
        self._published: dict[str, ECKey] = {}
        self._read_at = self._looked = self._fetched = float("-inf")
        self._due = 0.0  # time.time() of the next look at the table
        self._fetching: asyncio.Task[None] | None = None
        self._cache: dict[bytes, tuple[float, Caller]] = {}  # good ones alone, so no longer than we sign them
        self._claims, self._own_claims = (
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY_S,
                iss={"essential": True, "value": expected},
                aud={"essential": True, "value": audience},
                sub={"essential": True},
                exp={"essential": True},
                iat={"essential": True},
                role={"essential": True},
            )
            for expected in (issuer, own_issuer)
        )

    def caller(self, token: bytes) -> Caller:
        """The caller behind a token. Raises the 401 problem, which never says more than the sender must know."""
        now = time.time()
        if now > self._due:
            self._due = now + KEYS_KEPT_S
            self._fetch_soon()
        cached = self._cache.get(token)
        if cached is not None:
            if now < cached[0]:
                return cached[1]
            del self._cache[token]
        caller, expires = self._verify(token)
        while len(self._cache) >= CACHED_TOKENS_MAX:
            del self._cache[next(iter(self._cache))]
        self._cache[token] = (min(expires, now + CACHED_S_MAX), caller)
        return caller

    def _verify(self, token: bytes) -> tuple[Caller, float]:
        return self._checked(token, self._read)

    def claims(self, token: bytes) -> dict[str, Any]:
        """What a token says. Raises the 401 problem for one that is not good."""
        return self._checked(token, dict)

    def _checked(self, token: bytes, then: Callable[[dict[str, Any]], T]) -> T:
        if len(token) > TOKEN_CHARS_MAX:
            raise unauthenticated("the token is too long", tried=True)
        try:
            # One algorithm, and only keys of our own choosing by their id: no `none`, no HMAC under a public key, no `jwk`.
            kid = jws.extract_compact(token).headers().get("kid")
            if not isinstance(kid, str):
                raise unauthenticated("the token names no key", tried=True)
            key, claims = self._key(kid)
            found = jwt.decode(token, key, algorithms=["ES256"])
            if claims is self._own_claims and found.header.get("typ") != "at+jwt":
                raise ValueError("not an access token")
            claims.validate(found.claims)
            return then(found.claims)
        except Problem:
            raise
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            log.info("token refused: %s: %s", type(error).__name__, str(error))
            why = (
                "the token has expired" if getattr(error, "error", "") == "expired_token" else "the token is not valid"
            )
            raise unauthenticated(why, tried=True) from error

    @staticmethod
    def _read(claims: dict[str, Any]) -> tuple[Caller, float]:
        role, scope = claims["role"], claims.get("scope")
        if role not in ROLES or not isinstance(scope, str | None):
            raise ValueError("no such role")
        scopes = None if scope is None else frozenset(scope.split())
        return Caller(UUID(claims["sub"]), role, scopes), float(claims["exp"])

    def _key(self, kid: str) -> tuple[ECKey, jwt.JWTClaimsRegistry]:
        if kid in self._published:
            return self._published[kid], self._own_claims
        if kid not in self._filed or self._looked + 60 < time.monotonic():
            self._look()
        if kid not in self._filed:
            known = unauthenticated("the token is not valid", tried=True)
            raise UnknownKey(known.kind, known.detail, headers=known.headers)
        return self._filed[kid], self._claims

    async def fetch(self) -> None:
        """Read the table again, once a second at the most: whoever asks in between waits for the next look, all for the same one."""
        if self._table is not None:
            self._fetch_soon()
            assert self._fetching is not None
            await asyncio.shield(self._fetching)

    def _fetch_soon(self) -> None:
        if self._table is not None and (self._fetching is None or self._fetching.done()):
            self._fetching = asyncio.ensure_future(self._look_at(self._table))

    async def _look_at(self, table: Pool) -> None:
        await asyncio.sleep(max(0.0, self._fetched + KEYS_LOOK_S - time.monotonic()))
        self._fetched = time.monotonic()
        try:
            async with table.connection() as connection:
                rows = await (await connection.execute("SELECT kid, public FROM published_keys")).fetchall()
            found = {kid: ECKey.import_key(public) for kid, public in rows}
        except (DatabaseError, PoolTimeout, OSError, JoseError, ValueError) as error:
            log.warning("the published keys cannot be read: %s", error)
            return
        if self._published.keys() - found.keys():
            self._cache.clear()
        self._published = found

    def filed(self) -> list[dict[str, Any]]:
        """The file's public keys, as JWKs."""
        self._look()
        return [dict(key.as_dict(private=False)) for key in self._filed.values()]

    def _look(self) -> None:
        """Read the file again if it changed."""
        if time.monotonic() < self._looked + KEYS_LOOK_S:
            return
        self._looked = time.monotonic()
        try:
            changed = self._path.stat().st_mtime
            if changed == self._read_at:
                return
            found = json.loads(self._path.read_bytes())["keys"]
            keys = [
                key
                for key in found
                if key.get("kty") == "EC" and key.get("crv") == "P-256" and key.get("use", "sig") == "sig"
            ]
            self._filed = {key["kid"]: ECKey.import_key({k: v for k, v in key.items() if k != "d"}) for key in keys}
        except (OSError, ValueError, KeyError, TypeError, JoseError) as error:
            log.error("the public keys in %s cannot be read: %s", self._path, error)
            return
        self._read_at = changed
        self._cache.clear()


async def looked_up(call: Call, problem: Problem) -> Caller | None:
    """The caller behind a token of a key that was not known a moment ago, None for any other `problem` with it.

    The key is looked for twice: the first look may have begun before it was published.
    """
    for _ in range(2):
        if not isinstance(problem, UnknownKey):
            break
        await call.host.keys.fetch()
        try:
            return call.identified()
        except Problem as again:
            problem = again
    call.refused = problem
    return None


class Bearer(SecurityBase):
    """A route's right to be called: a dependency that gives the `Caller`, or 401, or 403."""

    model = BearerModel(bearerFormat="JWT", description="An ES256 JWT; `titan token --role customer` makes one.")
    scheme_name = "bearer"

    def __init__(self, scope: str | None, optional: bool = False) -> None:
        if scope is not None and scope.partition(":")[2] not in VERBS:
            raise TypeError(f"{scope} is not <resource>:<verb> with a verb of {', '.join(sorted(VERBS))}")
        self.scope, self.optional = scope, optional

    def take(self, call: Call) -> Caller | None:
        if call.authorization is None and self.optional:
            return None
        caller = call.identified()
        if self.scope is not None and not caller.may(self.scope):
            raise Problem(
                "forbidden", f"this needs {self.scope}, which the role {caller.role} or this token does not have"
            )
        return caller

    async def __call__(self, request: Request) -> Caller | None:
        call: Call = request.scope["titan"]
        return self.take(call)


def caller(scope: str) -> Any:
    """`Owner = Annotated[Caller, caller("wallets:write")]`: the caller, who must have that scope."""
    return Security(Bearer(scope))


def anybody() -> Any:
    """`Annotated[Caller, anybody()]`: the caller, whatever the token's scopes are."""
    return Security(Bearer(None))


def anyone(scope: str | None = None) -> Any:
    """`Annotated[Caller | None, anyone("carts:read")]`: the caller if there is a token, which must be good and have that scope, else
    None."""
    return Security(Bearer(scope, optional=True))
