"""What Authlib asks of whoever uses it: its grants and endpoints, and our clients, codes and tokens as it wants to see them.

All of it runs in a thread of its own; `server.wait` has the event loop look something up (`server`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from authlib.consts import default_json_headers
from authlib.oauth2.rfc6749 import ClientMixin, InvalidRequestError, OAuth2Error, OAuth2Payload, OAuth2Request
from authlib.oauth2.rfc6749 import grants as standard
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oidc.core.grants import OpenIDCode

from aggregates.auth import Account, Client, Method
from aggregates.kernel import clock
from aggregates.kernel.clock import new_id

if TYPE_CHECKING:
    from api.auth.server import Server

CODE = "authorisation code"
VISIBLE = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]*")
OPAQUE = re.compile(r"[\x20-\x7e]*")


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


def malformed(asked: Asked) -> Answer | None:
    """The answer to a request with characters that no parameter of OAuth has (RFC 6749, appendix A), which Authlib trips over."""
    for name, value in asked.form.items():
        allowed = OPAQUE if name in ("state", "nonce") else VISIBLE
        if name.isidentifier() and not allowed.fullmatch(value):
            why = f"{name if name.isascii() else 'a parameter'} has characters that it must not have"
            return Answer(400, {"error": "invalid_request", "error_description": why}, default_json_headers)
    return None


class Known(ClientMixin):  # type: ignore[misc]
    """A client that is registered and not disabled."""

    def __init__(self, server: Server, client: Client) -> None:
        self.server, self.client, self.id = server, client, client.id

    def get_client_id(self) -> str:
        return str(self.id)

    def get_default_redirect_uri(self) -> None:
        """None: a redirect URI is always named."""

    def get_allowed_scope(self, scope: str | None) -> str:
        return self.client.narrowed(scope)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return self.client.redirects_to(redirect_uri)

    def check_client_secret(self, client_secret: str) -> bool:
        return self.server.wait(self.server.is_secret(self.client, client_secret))

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
        server: Server = request.client.server
        code = request.authorization_code
        more = {"auth_time": code.auth_time, **({} if code.nonce is None else {"nonce": code.nonce})}
        return server.wait(server.identified(request.user, request.client.id, code.method, token, more))


class Revoking(RevocationEndpoint):  # type: ignore[misc]
    CLIENT_AUTH_METHODS = ["client_secret_basic", "client_secret_post", "none"]
    server: Server

    def query_token(self, token_string: str, token_type_hint: str | None) -> Held | None:
        return self.server.wait(self.server.held(token_string))

    def revoke_token(self, token: Held, request: Asked) -> None:
        """Ends its session. A client's own token has none, and nobody is told that it ended: it is good until it expires."""
        if token.account is None or token.session is None:
            raise OAuth2Error("it ends by itself, soon", error="unsupported_token_type", status_code=400)
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
