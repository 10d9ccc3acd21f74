"""Signing in with somebody else's account: any provider of OpenID Connect that the settings name.

It begins with a state for the provider and a ticket for whoever began it: who brings a state back must have its ticket, so that nobody can be
made to sign in as somebody else. An address that has an account here already is not taken over: its owner signs in and links the two.
"""

from __future__ import annotations

import json
import logging
import ssl
import time
from contextlib import suppress
from functools import lru_cache
from secrets import token_urlsafe
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import httpx
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from fastapi import APIRouter, Path
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import JWKRegistry, KeySet
from joserfc.jws import JWSRegistry
from pydantic import BaseModel, Field

from aggregates.auth import Account
from aggregates.kernel import NotFound, Refused
from aggregates.kernel.clock import new_id
from api.auth.fields import EMAIL_CHARS_MAX, Network, Proof, address_digest, mail_asked
from api.auth.sessions import Sessions, Tokens
from api.kernel import Body, Caller, Commands, Receipt, caller
from api.kernel.host import Host
from api.kernel.problems import Problem, retry_after
from api.kernel.route import Route
from api.kernel.secrets import Secrets as Kept
from api.kernel.stores import Secrets, TheHost, Vault
from api.kernel.vault import Vault as Sealer
from infra.settings import Provider

log = logging.getLogger(__name__)

KIND = "external sign-in"
BEGUN_S = 600.0  # so long somebody may take at the provider's
KNOWN_S = 3600.0  # a provider's endpoints and keys are looked up again after this
WAIT_S = 10.0
ALGORITHMS = ["ES256", "RS256", "PS256", "EdDSA"]
NOBODY = UUID(int=0)
SUBJECT_CHARS_MAX = 255

router = APIRouter(prefix="/auth/external", tags=["auth"], route_class=Route)
Owner = Annotated[Caller, caller("accounts:write")]
Named = Annotated[str, Path(pattern="^[a-z0-9-]{1,40}$", examples=["partner"])]

_known: dict[str, tuple[float, dict[str, Any], KeySet]] = {}


class Begun(BaseModel):
    """Send the person to `url`, and keep `ticket`: what comes back to the redirect URI is worth nothing without it."""

    url: str = Field(examples=["https://accounts.example.com/authorize?…"])
    ticket: str = Field(examples=["AZHR8J07fD6PAFwqfR9LagGR0fCdO3w-jwBcKn0fS2o"])


class Returned(Body):
    """What the provider has sent to the redirect URI, and the ticket."""

    state: Annotated[UUID, Field(examples=["0191d1f0-9d3b-7c3e-8f00-5c2a7d1f4b6a"])]
    code: Annotated[str, Field(min_length=1, max_length=2_000, pattern="^[ -~]+$", examples=["SplxlOBeZQQYbYS6WxSbIA"])]
    ticket: Proof


class Providers(BaseModel):
    items: list[str] = Field(examples=[["partner"]])


@router.get("", summary="Whose accounts can be used here")
async def providers(host: TheHost) -> Providers:
    return Providers(items=sorted(host.settings.oidc_providers))


@router.post("/{provider}/begin", summary="Begin to sign in with somebody else's account", responses={404: {}})
async def begin(provider: Named, network: Network, host: TheHost, secrets: Secrets) -> Begun:
    of = _configured(host, provider)
    await mail_asked(host, network)  # it asks the outside world for something, as a mail does
    metadata, _ = await _metadata(of)
    state, nonce, verifier = new_id(), token_urlsafe(32), token_urlsafe(48)
    await secrets.tidy(NOBODY, KIND, [])
    kept = {"provider": provider, "nonce": nonce, "verifier": verifier, "at": time.time()}
    await secrets.keep(NOBODY, KIND, json.dumps(kept).encode(), state)
    url = prepare_grant_uri(
        metadata["authorization_endpoint"], of.client_id, "code", of.redirect_uri, "openid email", str(state),
        nonce=nonce, code_challenge=create_s256_code_challenge(verifier), code_challenge_method="S256",
    )  # fmt: skip
    return Begun(url=url, ticket=secrets.proof(KIND, NOBODY, state))


@router.post("/{provider}/finish", summary="Sign in with it", responses={401: {}, 404: {}, 409: {}})
async def finish(provider: Named, body: Returned, host: TheHost, secrets: Secrets, vault: Vault) -> Tokens:
    """The first time makes an account, if the provider vouches for the address and it has none here."""
    claims = await _claims(host, secrets, provider, body)
    subject = _subject(secrets, provider, claims)
    account = await host.store.owner("auth", "external", subject)
    sessions = Sessions(host, secrets)
    if account is None:
        account = await _joined(host, secrets, vault, sessions, provider, subject, claims)
    session = await sessions.begin(account, "external")
    return await sessions.pair(account, session)


@router.post("/{provider}/link", summary="Let it sign one in from now on", responses={401: {}, 404: {}})
async def link(
    provider: Named, body: Returned, by: Owner, commands: Commands, host: TheHost, secrets: Secrets
) -> Receipt:
    claims = await _claims(host, secrets, provider, body)
    return await commands.tell(by.id, Account.link, provider, _subject(secrets, provider, claims))


@router.post("/{provider}/unlink", summary="Let it not sign one in any more", responses={404: {}})
async def unlink(provider: Named, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(by.id, Account.unlink, provider)


@lru_cache
def _tls() -> ssl.SSLContext:
    """For all clients: making one reads all certificates that there are, and nobody else is answered meanwhile."""
    return httpx.create_ssl_context()


def _configured(host: Host, provider: str) -> Provider:
    found = host.settings.oidc_providers.get(provider)
    if found is None:
        raise NotFound(f"there is no provider {provider}")
    return found


async def _metadata(of: Provider, anew: bool = False) -> tuple[dict[str, Any], KeySet]:
    """A provider's endpoints and keys. Raises the 503 problem when it does not answer, or not as itself."""
    known = _known.get(of.issuer)
    if known is not None and not anew and time.monotonic() < known[0]:
        return known[1], known[2]
    try:
        async with httpx.AsyncClient(timeout=WAIT_S, verify=_tls()) as client:
            url = of.issuer.rstrip("/") + "/.well-known/openid-configuration"
            metadata = (await client.get(url)).raise_for_status().json()
            if metadata["issuer"] != of.issuer:
                raise ValueError(f"it says that it is {metadata['issuer']}")
            keys = _usable((await client.get(metadata["jwks_uri"])).raise_for_status().json())
    except (httpx.HTTPError, ValueError, KeyError, TypeError, JoseError) as error:
        raise _away(error) from error
    _known[of.issuer] = time.monotonic() + KNOWN_S, metadata, keys
    return metadata, keys


def _usable(published: dict[str, Any]) -> KeySet:
    """A provider's keys but those that are of no kind known here, which do no harm to the others (RFC 7517, 5)."""
    keys = []
    for one in published["keys"]:
        with suppress(JoseError, ValueError, KeyError, TypeError):
            keys.append(JWKRegistry.import_key(one))
    if not keys:
        raise ValueError("it publishes no key that can be used here")
    return KeySet(keys)


async def _claims(host: Host, secrets: Kept, provider: str, returned: Returned) -> dict[str, Any]:
    """What the provider says of whoever has signed in there. Raises the 401 or the 503 problem."""
    of = _configured(host, provider)
    kept = await secrets.reveal(NOBODY, KIND, returned.state)
    ticketed = secrets.proven(KIND, returned.ticket) == (NOBODY, returned.state)
    begun = json.loads(kept) if kept is not None else {}
    fresh = ticketed and begun.get("provider") == provider and time.time() < begun["at"] + BEGUN_S
    if not fresh or not await secrets.use(returned.state, KIND):
        raise _wrong("this was not begun here, or too long ago: begin again")
    metadata, keys = await _metadata(of)
    tokens = await _exchanged(of, metadata, returned.code, begun["verifier"])
    try:
        try:
            return _checked(tokens.get("id_token"), keys, of, begun["nonce"])
        except (InvalidKeyIdError, BadSignatureError):
            _, keys = await _metadata(of, anew=True)  # its keys may have rotated
            return _checked(tokens.get("id_token"), keys, of, begun["nonce"])
    except (JoseError, ValueError, KeyError, TypeError) as error:
        raise _wrong("what the provider says of you is not signed by it, or not said to us") from error


def _checked(token: object, keys: KeySet, of: Provider, nonce: str) -> dict[str, Any]:
    """The claims of an id_token that is good (OpenID Connect Core, 3.1.3.7). Raises `JoseError` and what bad JSON raises."""
    if not isinstance(token, str):
        raise ValueError("there is no id_token")
    # A header that is not known here is let be (RFC 7515, 4): some providers have their own. One in `crit` is refused.
    registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
    claims = dict(jwt.decode(token, keys, registry=registry).claims)
    several = isinstance(claims.get("aud"), list) and len(claims["aud"]) > 1
    jwt.JWTClaimsRegistry(
        leeway=60,
        iss={"essential": True, "value": of.issuer},
        aud={"essential": True, "value": of.client_id},
        azp={"essential": several, "value": of.client_id},
        sub={"essential": True},
        exp={"essential": True},
        nonce={"essential": True, "value": nonce},
    ).validate(claims)
    return claims


async def _exchanged(of: Provider, metadata: dict[str, Any], code: str, verifier: str) -> dict[str, Any]:
    """The provider's tokens for a code (RFC 6749, 4.1.3). Raises the 401 or the 503 problem."""
    body = {
        "grant_type": "authorization_code", "code": code, "redirect_uri": of.redirect_uri, "code_verifier": verifier,
    }  # fmt: skip
    auth = httpx.Auth()  # none
    if "client_secret_basic" in metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"]):
        auth = httpx.BasicAuth(quote(of.client_id, ""), quote(of.client_secret, ""))
    else:  # Apple's, for one
        body |= {"client_id": of.client_id, "client_secret": of.client_secret}
    try:
        async with httpx.AsyncClient(timeout=WAIT_S, verify=_tls()) as client:
            answer = await client.post(metadata["token_endpoint"], data=body, auth=auth)
            tokens = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise _away(error) from error
    if not isinstance(tokens, dict) or answer.status_code != 200:
        log.info("a provider refuses a code: %s %s", answer.status_code, answer.text[:200])
        raise _wrong("the provider does not know this code")
    return tokens


async def _joined(
    host: Host, secrets: Kept, vault: Sealer, sessions: Sessions, provider: str, subject: str, claims: dict[str, Any]
) -> UUID:
    """A new account for whom the provider vouches. Raises `Refused`."""
    email = claims.get("email")
    said = claims.get("email_verified")
    vouched = said is True or said == "true"  # a text from some
    if not vouched or not isinstance(email, str) or not 3 <= len(email) <= EMAIL_CHARS_MAX:
        raise Refused("the provider does not vouch for an address of yours: register here, and link the two")
    digest = address_digest(secrets, email)
    owner = await host.store.owner("auth", "email", digest)
    if owner is not None:  # an account that nobody has verified yet becomes theirs; another refuses
        await sessions.commands(owner).tell(owner, Account.vouched, new_id(), provider, subject)
        return owner
    account = new_id()
    sealed = await vault.seal(account, email)
    make = sessions.commands(account).open_as
    await make(account, Account.join_external, sealed, digest, new_id(), provider, subject)
    return account


def _subject(secrets: Kept, provider: str, claims: dict[str, Any]) -> str:
    """A keyed digest of who it is there: events say nothing of that."""
    sub = claims["sub"]
    if not isinstance(sub, str) or not 0 < len(sub) <= SUBJECT_CHARS_MAX:
        raise _wrong("the provider does not say who you are")
    return secrets.digest("external", provider.encode(), sub.encode()).hex()


def _wrong(why: str) -> Problem:
    return Problem("unauthenticated", why, headers=[(b"www-authenticate", b'Bearer realm="titan"')])


def _away(error: Exception) -> Problem:
    return Problem("unavailable", f"the provider does not answer as it should: {error}"[:300], headers=retry_after(5))
