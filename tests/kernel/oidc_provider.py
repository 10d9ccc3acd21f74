"""A provider of OpenID Connect as the large ones are: RSA keys that rotate. It says what a test has it say, by whatever key."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def rsa(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"}, private=True)


@dataclass
class OidcProvider:
    """`published`: its JWKS. `codes`: the id_token of each code, and the PKCE challenge it was asked for with. `sent`: requests for tokens."""

    issuer: str
    secret: str
    published: list[dict[str, Any]]
    methods: list[str] = field(default_factory=lambda: ["client_secret_basic", "client_secret_post"])
    codes: dict[str, tuple[str, str]] = field(default_factory=dict)
    looked: int = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self.discovery),
                Route("/keys", self.keys),
                Route("/token", self.token, methods=["POST"]),
            ]
        )

    async def discovery(self, _: Request) -> JSONResponse:
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                "id_token_signing_alg_values_supported": ["RS256"],
                "token_endpoint_auth_methods_supported": self.methods,
            }
        )

    async def keys(self, _: Request) -> JSONResponse:
        self.looked += 1
        return JSONResponse({"keys": self.published})

    async def token(self, request: Request) -> JSONResponse:
        body = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        method = "client_secret_basic" if scheme == "Basic" else "client_secret_post"
        secret = base64.b64decode(given).decode().partition(":")[2] if given else body.get("client_secret")
        if method not in self.methods or secret != self.secret:
            return JSONResponse({"error": "invalid_client"}, 401)
        id_token, challenge = self.codes.pop(body["code"])
        hashed = base64.urlsafe_b64encode(hashlib.sha256(body["code_verifier"].encode()).digest())
        if hashed.decode().rstrip("=") != challenge:
            return JSONResponse({"error": "invalid_grant"}, 400)
        return JSONResponse({"access_token": "opaque", "token_type": "Bearer", "id_token": id_token})
