"""The authorisation server: Authlib decides what OAuth 2 and OpenID Connect allow, here stands where it finds what it asks for.

Authlib is synchronous, so a request to it runs in a thread, and what it asks of our stores runs in the event loop meanwhile.
One `Server` answers one request.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections import defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    ClientMixin,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    OAuth2Error,
    OAuth2Payload,
    OAuth2Request,
)
from authlib.oauth2.rfc6749 import grants as standard
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oidc.core.grants import OpenIDCode
from authlib.oidc.core.util import create_half_hash

from aggregates.auth import Account, Client, Method, Session
from aggregates.kernel import NotFound, Refused, clock
from aggregates.kernel.clock import new_id
from api.auth.sessions import Sessions, Tokens
from api.auth.signing import ACCESS_S
from api.kernel.host import Host
from api.kernel.problems import Problem
from api.kernel.secrets import Secrets

T = TypeVar("T")
CODE, CLIENT_SECRET = "authorisation code", "client secret"
CODE_S = 60.0
ID_TOKEN_S = 600
WAIT_S = 10.0  # for a store, before the request fails
SIGNED_IN_BY = {"password": ["pwd"], "password_and_code": ["pwd", "otp"], "password_and_recovery_code": ["pwd", "otp"]}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is to be sent."""

    status: int
    body: Any
    headers: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class User:
    """Who has signed in at the page, and by what."""

    account: Account
    method: Method


class Fields(OAuth2Payload):  # type: ignore[misc]
    """The parameters of a request, however they came."""

    def __init__(self, given: Sequence[tuple[str, str]]) -> None:
        self._all: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in given:
            self._all[name].append(value)

    @property
    def data(self) -> dict[str, str]:
        return {name: values[-1] for name, values in self._all.items()}

    @property
    def datalist(self) -> defaultdict[str, list[str]]:
        return self._all


class Asked(OAuth2Request):  # type: ignore[misc]
    """A request as Authlib wants it."""

    def __init__(self, method: str, given: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> None:
        super().__init__(method, "https://here", headers=dict(headers))  # whether it came by TLS is the proxy's affair
        self.payload = Fields(given)

    @property
    def args(self) -> dict[str, str]:
        return self.payload.data

    @property
    def form(self) -> dict[str, str]:
        return self.payload.data


class Known(ClientMixin):  # type: ignore[misc]
    """A client that is registered and not disabled."""

    def __init__(self, server: Server, client: Client) -> None:
        self._server, self.client, self.id = server, client, client.id

    def get_client_id(self) -> str:
        return str(self.id)

    def get_default_redirect_uri(self) -> None:
        """None: a redirect URI is always named."""

    def get_allowed_scope(self, scope: str | None) -> str:
        return self.client.narrowed(scope)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return self.client.redirects_to(redirect_uri)

    def check_client_secret(self, client_secret: str) -> bool:
        return self._server.wait(self._server.is_secret(self.client, client_secret))

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return (method == "none") == (self.client.secret is None)

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code" and self.check_grant_type("authorization_code")

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.client.grants


@dataclass(frozen=True, slots=True)
class Code:
    """What an authorisation code stands for. `session`: the one that it begins, or has begun."""

    account: UUID
    session: UUID
    method: Method
    redirect_uri: str
    scope: str
    nonce: str | None
    challenge: str
    auth_time: int

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass(frozen=True, slots=True)
class Held:
    """A token that somebody shows: a session's, or of a client that acts for itself."""

    client: UUID
    claims: dict[str, Any]
    account: UUID | None = None
    session: UUID | None = None
    text: str = ""

    def check_client(self, client: Known) -> bool:
        return client.id == self.client

    def get_scope(self) -> str:
        return str(self.claims.get("scope", ""))

    def is_expired(self) -> bool:
        return False  # it would not have been found

    def is_revoked(self) -> bool:
        return False


class CodeGrant(standard.AuthorizationCodeGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic", "client_secret_post", "none"]
    server: Server

    def generate_authorization_code(self) -> str:
        return self.server.secrets.proof(CODE, self.request.client.id, new_id())

    def save_authorization_code(self, code: str, request: Asked) -> None:
        user, data = request.user, request.payload.data
        made = Code(
            user.account.id, new_id(), user.method, data["redirect_uri"], request.scope, data.get("nonce"), data["code_challenge"],
            int(clock.now().timestamp()),
        )  # fmt: skip
        self.server.wait(self.server.keep(request.client.id, code, made))

    def query_authorization_code(self, code: str, client: Known) -> Code | None:
        return self.server.wait(self.server.taken(code, client.id))

    def delete_authorization_code(self, authorization_code: Code) -> None:
        """It is used up already, and stays for a replay to be noticed."""

    def authenticate_user(self, authorization_code: Code) -> Account | None:
        self.server.code = authorization_code
        return self.server.wait(self.server.account(authorization_code.account))


class Refreshing(standard.RefreshTokenGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic", "client_secret_post", "none"]
    server: Server

    def authenticate_refresh_token(self, refresh_token: str) -> Held | None:
        return self.server.wait(self.server.of_session(refresh_token, self.request.client.id))

    def authenticate_user(self, refresh_token: Held) -> Account | None:
        assert refresh_token.account is not None
        return self.server.wait(self.server.account(refresh_token.account))

    def issue_token(self, user: Account, refresh_token: Held) -> dict[str, Any]:
        scope = self.request.payload.scope or refresh_token.get_scope()
        return self.server.wait(self.server.exchanged(refresh_token, scope))

    def revoke_old_credential(self, refresh_token: Held) -> None:
        """Exchanging it has used it up."""


class Machine(standard.ClientCredentialsGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic", "client_secret_post"]


class Pkce(CodeChallenge):  # type: ignore[misc]
    """For every client, with SHA-256 (OAuth 2.1)."""

    DEFAULT_CODE_CHALLENGE_METHOD = "S256"
    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]

    def validate_code_challenge(self, grant: CodeGrant, redirect_uri: str) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("PKCE is needed: code_challenge, with code_challenge_method S256")
        super().validate_code_challenge(grant, redirect_uri)

    def get_authorization_code_challenge(self, authorization_code: Code) -> str:
        return authorization_code.challenge

    def get_authorization_code_challenge_method(self, authorization_code: Code) -> str:
        return "S256"


class OpenId(OpenIDCode):  # type: ignore[misc]
    def exists_nonce(self, nonce: str, request: Asked) -> bool:
        return False  # a code is good once, and the nonce is the client's to check

    def encode_id_token(self, token: dict[str, Any], request: Asked) -> str:
        server: Server = request.client._server
        code = request.authorization_code
        hashed = create_half_hash(token["access_token"], "ES256")
        claims: dict[str, Any] = {
            "sub": str(request.user.id),
            "aud": str(request.client.id),
            "auth_time": code.auth_time,
            "amr": SIGNED_IN_BY.get(code.method, ["fed"]),
            "at_hash": hashed.decode(),
        }
        if code.nonce is not None:
            claims["nonce"] = code.nonce
        claims |= server.wait(server.described(request.user, token["scope"]))
        return server.wait(server.sessions.signer.sign(claims, "JWT", ID_TOKEN_S))


class Revoking(RevocationEndpoint):  # type: ignore[misc]
    CLIENT_AUTH_METHODS = ["client_secret_basic", "client_secret_post", "none"]
    server: Server

    def query_token(self, token_string: str, token_type_hint: str | None) -> Held | None:
        return self.server.wait(self.server.held(token_string))

    def revoke_token(self, token: Held, request: Asked) -> None:
        if token.account is not None and token.session is not None:
            account, session = token.account, token.session
            self.server.wait(self.server.sessions.commands(account).tell(account, Account.sign_out, session))


class Introspecting(IntrospectionEndpoint):  # type: ignore[misc]
    CLIENT_AUTH_METHODS = ["client_secret_basic", "client_secret_post"]
    server: Server

    def query_token(self, token_string: str, token_type_hint: str | None) -> Held | None:
        return self.server.wait(self.server.held(token_string))

    def check_permission(self, token: Held, client: Known, request: Asked) -> bool:
        """One's own tokens, and a service everybody's: it is what tokens are shown to."""
        return token.client == client.id or client.client.role in ("service", "admin")

    def introspect_token(self, token: Held) -> dict[str, Any]:
        return token.claims


class Server(AuthorizationServer):  # type: ignore[misc]
    """Authlib's server over our accounts and clients."""

    def __init__(self, host: Host, secrets: Secrets) -> None:
        super().__init__()
        self.host, self.secrets, self.sessions = host, secrets, Sessions(host, secrets)
        self.code: Code | None = None
        self._loop = asyncio.get_running_loop()
        self.register_token_generator("default", self._tokens)
        self.register_grant(CodeGrant, [Pkce(), OpenId()])
        self.register_grant(Refreshing)
        self.register_grant(Machine)
        self.register_endpoint(Revoking)
        self.register_endpoint(Introspecting)

    def wait(self, work: Awaitable[T]) -> T:
        """In Authlib's thread: what the event loop makes of it."""

        async def done() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(WAIT_S)

    # What Authlib asks for, in its thread.
    def query_client(self, client_id: str) -> Known | None:
        return self.wait(self.client(client_id))

    def save_token(self, token: Mapping[str, Any], request: Asked) -> None:
        """Nothing: what is kept of a session is kept before its tokens are made."""

    def send_signal(self, name: str, *args: object, **more: object) -> None:
        """Nobody listens: what matters is an event."""

    def create_oauth2_request(self, request: Asked) -> Asked:
        return request

    def handle_response(self, status: int, body: Any, headers: Sequence[tuple[str, str]]) -> Answer:
        return Answer(status, body, headers)

    def _tokens(
        self,
        grant_type: str,
        client: Known,
        user: Account | None,
        scope: str | None,
        expires_in: int | None,
        include_refresh_token: bool,
    ) -> dict[str, Any]:
        if grant_type == "client_credentials":
            return self.wait(self._machines(client.client, scope))
        return self.wait(self._begun(client.client, include_refresh_token))

    # What it is answered with, in the event loop.
    async def client(self, client_id: str) -> Known | None:
        try:
            found = await self.host.store.load(Client, UUID(client_id))
        except (ValueError, NotFound):
            return None
        return None if found.disabled else Known(self, found)

    async def is_secret(self, client: Client, text: str) -> bool:
        if client.secret is None:
            return False
        kept = await self.secrets.reveal(client.id, CLIENT_SECRET, client.secret)
        return kept is not None and hmac.compare_digest(kept, self.secrets.digest(CLIENT_SECRET, text.encode()))

    async def account(self, id: UUID) -> Account | None:
        try:
            return await self.host.store.load(Account, id)
        except NotFound:
            return None

    async def keep(self, client: UUID, text: str, code: Code) -> None:
        """A code's meaning, sealed as every secret is."""
        proven = self.secrets.proven(CODE, text)
        assert proven is not None
        made = {
            "account": str(code.account), "session": str(code.session), "method": code.method, "redirect_uri": code.redirect_uri,
            "scope": code.scope, "nonce": code.nonce, "challenge": code.challenge, "auth_time": code.auth_time,
        }  # fmt: skip
        await self.secrets.tidy(client, CODE, [])
        await self.secrets.keep(client, CODE, json.dumps(made).encode(), proven[1])

    async def taken(self, text: str, client: UUID) -> Code | None:
        """The code, used up from now on. One that comes again ends the session that it had begun."""
        proven = self.secrets.proven(CODE, text)
        if proven is None or proven[0] != client:
            return None
        kept = await self.secrets.reveal(client, CODE, proven[1])
        if kept is None:
            return None
        found = json.loads(kept)
        code = Code(**{**found, "account": UUID(found["account"]), "session": UUID(found["session"])})
        if not await self.secrets.use(proven[1], CODE):
            await self.sessions.commands(code.account).tell(code.account, Account.replayed, code.session)
            return None
        return code if clock.now().timestamp() < code.auth_time + CODE_S else None

    async def _begun(self, client: Client, with_refresh: bool) -> dict[str, Any]:
        code = self.code
        assert code is not None
        try:
            await self.sessions.begin(code.account, code.method, None, client.id, code.scope, code.session)
        except Refused as no:
            raise InvalidGrantError(str(no)) from no
        made = _document(await self.sessions.pair(code.account, code.session, client=client.id), code.scope)
        return made if with_refresh else {name: value for name, value in made.items() if name != "refresh_token"}

    async def exchanged(self, token: Held, scope: str) -> dict[str, Any]:
        """The next pair of a session. Raises `InvalidGrantError` for a token that was used before."""
        try:
            return _document(await self.sessions.exchange(token.text, token.client, scope), scope)
        except Problem as problem:
            raise InvalidGrantError(problem.detail) from problem

    async def _machines(self, client: Client, scope: str | None) -> dict[str, Any]:
        granted = client.narrowed(scope)
        if not granted:
            raise InvalidScopeError()
        claims = {
            "aud": self.host.settings.jwt_audience, "sub": str(client.id), "client_id": str(client.id), "role": client.role,
            "scope": granted, "jti": str(new_id()),
        }  # fmt: skip
        signed = await self.sessions.signer.sign(claims, "at+jwt", ACCESS_S)
        return {"access_token": signed, "token_type": "Bearer", "expires_in": ACCESS_S, "scope": granted}

    async def of_session(self, text: str, client: UUID) -> Held | None:
        """A refresh token of that client's whose session is alive."""
        try:
            account, id, _ = self.sessions.read(text)
            _, session = await self.sessions.alive(account, id, client)
        except Problem:
            return None
        return Held(client, _claims(account, client, session), account, id, text)

    async def held(self, text: str) -> Held | None:
        """Whatever token of ours it is, if it is good still."""
        if text.count(".") == 3:
            try:
                account, id, _ = self.sessions.read(text)
                found = await self.account(account)
            except Problem:
                return None
            session = found.alive(id, clock.now()) if found else None
            if session is None or session.client is None:
                return None
            return Held(session.client, _claims(account, session.client, session), account, id, text)
        try:
            claims = self.host.keys.claims(text.encode())
            client = UUID(claims["client_id"])
            if "sid" not in claims:
                return Held(client, claims) if await self.client(claims["client_id"]) else None
            account, id = UUID(claims["sub"]), UUID(claims["sid"])
            await self.sessions.alive(account, id, client)
        except (Problem, KeyError, ValueError):
            return None
        return Held(client, claims, account, id)

    async def described(self, account: Account, scope: str) -> dict[str, Any]:
        """What a scope lets a client know of somebody."""
        if "email" not in scope.split() or self.host.vault is None:
            return {}
        return {"email": await self.host.vault.open(account.email), "email_verified": account.verified}

    def asked_for(self, request: Asked) -> CodeGrant | Answer:
        """In Authlib's thread: the authorisation that is asked for, or why there is none."""
        try:
            grant: CodeGrant = self.get_consent_grant(request)
            return grant
        except OAuth2Error as error:
            answer: Answer = self.handle_error_response(request, error)
            return answer


def _document(tokens: Tokens, scope: str) -> dict[str, Any]:
    return {**tokens.model_dump(exclude={"device"}), "scope": scope}


def _claims(account: UUID, client: UUID, session: Session) -> dict[str, Any]:
    return {
        "sub": str(account), "client_id": str(client), "token_type": "refresh_token", "scope": session.scope or "",
        "exp": int(session.expires_at.timestamp()), "iat": int(session.began_at.timestamp()),
    }  # fmt: skip
