"""OAuth clients: programs that act for people who let them, or for themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit
from uuid import UUID

from aggregates.auth.parts import Role
from aggregates.kernel import Aggregate, Created, Event, Invalid, event, require
from aggregates.kernel.text import line

Grant = Literal["authorization_code", "refresh_token", "client_credentials"]

NAME_CHARS_MAX, URI_CHARS_MAX = 100, 500
URIS_MAX, SCOPES_MAX = 10, 100
IDENTITY = ("openid", "email", "offline_access")
SCOPE = re.compile(r"[a-z]{1,32}:[a-z]{1,32}")
HOME = ("127.0.0.1", "::1", "localhost")


class ClientRegistered(Created):
    owner: UUID
    name: str
    redirect_uris: tuple[str, ...]
    grants: tuple[Grant, ...]
    scopes: tuple[str, ...]
    role: Role | None
    secret: UUID | None  # names where its digest is kept; None: it can keep none


class ClientSecretChanged(Event):
    secret: UUID

    def apply(self, client: Client) -> None:
        client.secret = self.secret


class ClientDisabled(Event):
    """Nothing is given to it any more, and what it has is not renewed."""

    def apply(self, client: Client) -> None:
        client.disabled = True


class Client(Aggregate):
    """`role`: what it is when it acts for itself. `scopes`: the most that its tokens may do."""

    @event(ClientRegistered)
    def __init__(
        self,
        owner: UUID,
        name: str,
        redirect_uris: tuple[str, ...],
        grants: tuple[Grant, ...],
        scopes: tuple[str, ...],
        role: Role | None,
        secret: UUID | None,
    ) -> None:
        self.owner, self.name, self.redirect_uris, self.grants = owner, name, list(redirect_uris), list(grants)
        self.scopes, self.role, self.secret = list(scopes), role, secret
        self.disabled = False

    @classmethod
    def register(
        cls,
        owner: UUID,
        name: str,
        redirect_uris: Sequence[str],
        grants: Sequence[Grant],
        scopes: Sequence[str],
        role: Role | None,
        secret: UUID | None,
    ) -> Client:
        """A new client. Without a secret it is a public one: an app or a page, which proves itself by PKCE alone."""
        name = line(name, "the name", NAME_CHARS_MAX)
        require(bool(grants), "a client uses one grant at the least")
        require(len(redirect_uris) <= URIS_MAX and len(scopes) <= SCOPES_MAX, "too many redirect URIs or scopes")
        for uri in redirect_uris:
            redirectable(uri)
        for scope in scopes:
            if scope not in IDENTITY and not SCOPE.fullmatch(scope):
                raise Invalid(f"a scope is <resource>:<verb> or one of {', '.join(IDENTITY)}, not {scope[:80]!r}")
        code = "authorization_code" in grants
        require(code == bool(redirect_uris), "who takes codes has redirect URIs, and nobody else")
        require("refresh_token" not in grants or code, "refresh tokens come with codes")
        own = "client_credentials" in grants
        require(own == (role is not None), "who acts for itself has a role, and nobody else")
        require(not own or secret is not None, "who acts for itself has a secret")
        return cls(
            owner=owner,
            name=name,
            redirect_uris=tuple(dict.fromkeys(redirect_uris)),
            grants=tuple(dict.fromkeys(grants)),
            scopes=tuple(dict.fromkeys(scopes)),
            role=role,
            secret=secret,
        )

    def change_secret(self, secret: UUID) -> None:
        """The old one is worth nothing from now on."""
        if self.secret == secret:
            return
        require(self.secret is not None, "a public client has no secret")
        require(not self.disabled, "the client is disabled")
        self.trigger_event(ClientSecretChanged, secret=secret)

    def disable(self) -> None:
        if not self.disabled:
            self.trigger_event(ClientDisabled)

    def narrowed(self, wanted: str | None) -> str:
        """The wanted scopes that it may have, all that it may when none are named."""
        asked = self.scopes if wanted is None else wanted.split()
        return " ".join(scope for scope in asked if scope in self.scopes)

    def redirects_to(self, uri: str) -> bool:
        """Whether codes may go there: exactly what was registered, but for the port of the own machine (RFC 8252)."""
        if uri in self.redirect_uris:
            return True
        try:
            here = urlsplit(uri)
            return here.hostname in ("127.0.0.1", "::1") and any(
                here._replace(netloc="") == known._replace(netloc="") and here.hostname == known.hostname
                for known in map(urlsplit, self.redirect_uris)
                if known.scheme == "http" and "@" not in here.netloc
            )
        except ValueError:
            return False


def redirectable(uri: str) -> str:
    """A URI that codes may be sent to: https, or this machine. Raises `Invalid`."""
    wrong = Invalid("a redirect URI is https://… without a fragment, or http:// to the own machine")
    if len(uri) > URI_CHARS_MAX or not uri.isascii() or not uri.isprintable() or any(c in uri for c in " #\\<>\"'*"):
        raise wrong
    try:
        parts = urlsplit(uri)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise wrong from None
    home = parts.scheme == "http" and host in HOME
    if not host or "@" in parts.netloc or not (parts.scheme == "https" or home):
        raise wrong
    return uri
