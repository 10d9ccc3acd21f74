"""The authorisation server: Authlib decides what OAuth 2 and OpenID Connect allow (`grants`), here stands what it is answered with.

Authlib is synchronous, so a request to it runs in a thread, and what it asks of our stores runs in the event loop meanwhile.
One `Server` answers one request.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from authlib.oauth2.rfc6749 import AuthorizationServer, InvalidGrantError, InvalidScopeError, OAuth2Error
from authlib.oidc.core.util import create_half_hash

from aggregates.auth import Account, Client, Method, Session
from aggregates.kernel import NotFound, Refused, clock
from aggregates.kernel.clock import new_id
from api.auth.grants import (
    CODE,
    Answer,
    Asked,
    Code,
    CodeGrant,
    Held,
    Introspecting,
    Known,
    Machine,
    OpenId,
    Pkce,
    Refreshing,
    Revoking,
    malformed,
)
from api.auth.sessions import Sessions, Tokens
from api.auth.signing import ACCESS_S
from api.kernel.host import Host
from api.kernel.problems import Problem
from api.kernel.secrets import Secrets

T = TypeVar("T")
CLIENT_SECRET = "client secret"
CODE_S = 60.0
ID_TOKEN_S = 600
SIGNED_IN_BY = {"password": ["pwd"], "password_and_code": ["pwd", "otp"], "password_and_recovery_code": ["pwd", "otp"]}
WAIT_S = 10.0  # for a store, before the request fails


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
        assert token.account is not None and token.session is not None
        try:
            made = _document(await self.sessions.exchange(token.text, token.client, scope), scope)
            account, session = await self.sessions.alive(token.account, token.session, token.client)
        except Problem as problem:
            raise InvalidGrantError(problem.detail) from problem
        if "openid" in scope.split():  # without nonce and auth_time, which are of the sign-in
            made["id_token"] = await self.identified(account, token.client, session.method, made, {})
        return made

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

    async def identified(
        self, account: Account, client: UUID, method: Method, tokens: Mapping[str, Any], more: Mapping[str, Any]
    ) -> str:
        """An id_token that says to a client whose `tokens` these are."""
        claims = {
            "sub": str(account.id),
            "aud": str(client),
            "amr": SIGNED_IN_BY.get(method, ["fed"]),
            "at_hash": create_half_hash(tokens["access_token"], "ES256").decode(),
            **more,
            **await self.described(account, tokens["scope"]),
        }
        return await self.sessions.signer.sign(claims, "JWT", ID_TOKEN_S)

    async def described(self, account: Account, scope: str) -> dict[str, Any]:
        """What a scope lets a client know of somebody."""
        if "email" not in scope.split() or self.host.vault is None:
            return {}
        return {"email": await self.host.vault.open(account.email), "email_verified": account.verified}

    def asked_for(self, request: Asked) -> CodeGrant | Answer:
        """In Authlib's thread: the authorisation that is asked for, or why there is none."""
        if no := malformed(request):
            return no
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
