"""Where the gateways are, and the secrets shared with them."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from uuid import UUID

from pydantic import Field, SecretStr, ValidationError, model_validator

from aggregates.kernel import require
from infra.errors import StackError
from infra.settings import Settings, WebUrl, data_folder, load, refused
from streams.gateways.routing import NAME, Rule, Terms
from streams.gateways.settlement import EDGE


class GatewaySettings(Settings):
    """The platform's settings and the gateways'. Every field can be set as TITAN_<NAME>."""

    gateways: dict[str, Terms] = Field(
        {"test": Terms()}, description="by name: what each takes, costs, and where it is"
    )
    routes: tuple[Rule, ...] = Field((), description="which gateways a payment goes to: the first rule that fits it")
    gateway_name: str = Field("test", description="set for each gateway that is opened")
    gateway_timeout_s: float = Field(10.0, gt=0, description="after which a gateway's answer is unknown")
    test_gateway: WebUrl | None = Field(
        None, description="URL of the built-in test gateway; the port after the API's, if not set"
    )
    test_gateway_public: WebUrl | None = Field(
        None, description="the same URL as customers see it, if that is another one"
    )
    test_gateway_secret: Path = Field(
        default_factory=lambda: data_folder() / "keys" / "test-gateway",
        description="what the test gateway and the platform share; made by whoever needs it first",
    )
    test_gateway_webhook: WebUrl | None = Field(
        None, description="where the test gateway's webhooks go; the API, if not set"
    )
    test_gateway_hold_s: float = Field(
        30.0, gt=0, description="how long the test gateway keeps a request that it won't answer"
    )
    gateway_return: WebUrl | None = Field(
        None,
        description="where a bank sends a customer's browser back to, {payment} in it; the API, if not set",
    )
    stripe_url: WebUrl = Field("https://api.stripe.com", description="of Stripe's API")
    stripe_secret_key: SecretStr | None = Field(None, description="Stripe's secret or restricted key, sk_… or rk_…")
    stripe_webhook_secrets: tuple[SecretStr, ...] = Field(
        (), description='signing secrets of the webhook\'s endpoint, ["whsec_…"]: two while they change'
    )
    adyen_url: WebUrl = Field(
        "https://checkout-test.adyen.com",
        description="of Adyen's Checkout API; live: https://PREFIX-checkout-live.adyenpayments.com/checkout",
    )
    adyen_api_key: SecretStr | None = Field(None, description="Adyen's API key")
    adyen_merchant_account: str | None = Field(None, description="the account at Adyen that payments are for")
    adyen_reports_url: WebUrl = Field(
        "https://ca-test.adyen.com", description="of Adyen's reports; live: https://ca-live.adyen.com"
    )
    adyen_report_user: str | None = Field(None, description="Adyen's report user, report_…@Company.…")
    adyen_report_password: SecretStr | None = Field(None, description="the report user's basic-auth password")
    adyen_hmac_keys: tuple[SecretStr, ...] = Field(
        (), description='HMAC keys of the standard webhook, ["44782DEF…"]: two while they change'
    )

    @model_validator(mode="after")
    def _named(self) -> GatewaySettings:
        for name, terms in self.gateways.items():
            if not re.fullmatch(NAME, name):
                raise ValueError(f"TITAN_GATEWAYS: a gateway's name is one lower-case word, not {name!r}")
            if unknown := terms.set.keys() - type(self).model_fields.keys():
                raise ValueError(f"TITAN_GATEWAYS: {name}: there is no setting {', '.join(sorted(unknown))}")
        for number, rule in enumerate(self.routes, 1):
            if unknown := set(rule.gateways) - self.gateways.keys():
                raise ValueError(
                    f"TITAN_ROUTES: rule {number} names gateways that there are not: {', '.join(sorted(unknown))}"
                )
        return self

    def require_knows(self, gateway: str, token: str) -> None:
        """Raises `Refused` when there is no such gateway, or the token is none of its vault."""
        require(gateway in self.gateways, f"there is no gateway {gateway}")
        require(self.gateways[gateway].knows(token), f"the gateway {gateway} knows no such token")

    def at(self, name: str) -> GatewaySettings:
        """The settings as they are for the gateway of that name. Raises `KeyError`."""
        given = self.model_dump(exclude_unset=True)
        return type(self)(**{**given, **self.gateways[name].set, "gateway_name": name})

    def settles_within(self, usual: int) -> timedelta:
        """How long after a capture or refund it may be in none of this gateway's reports yet; `usual`: days, if its terms say nothing."""
        terms = self.gateways.get(self.gateway_name)
        days = usual if terms is None or terms.settles_days is None else terms.settles_days
        return EDGE + timedelta(days=days)

    @classmethod
    def of(cls, settings: Settings) -> GatewaySettings:
        """The gateways' settings beside the platform's own."""
        return settings if isinstance(settings, cls) else cls(**settings.model_dump(exclude_unset=True))

    @property
    def test_gateways(self) -> list[str]:
        """The names of those that are built in."""
        return [name for name, terms in self.gateways.items() if (terms.adapter or name) == "test"]

    @property
    def test_gateway_url(self) -> str:
        return (self.test_gateway or f"http://{self.api_host}:{self.api_port + 1}").rstrip("/")

    @property
    def test_gateway_seen(self) -> str:
        return (self.test_gateway_public or self.test_gateway_url).rstrip("/")

    @property
    def webhook_url(self) -> str:
        return (
            self.test_gateway_webhook or f"http://{self.api_host}:{self.api_port}/payments/webhooks/{self.gateway_name}"
        )

    @property
    def _api(self) -> str:
        return (self.public_url or f"http://{self.api_host}:{self.api_port}").rstrip("/")

    def gateway_return_url(self, payment: UUID) -> str:
        return (self.gateway_return or f"{self._api}/payments/{{payment}}/return").replace("{payment}", str(payment))

    def method_return_url(self, customer: UUID, method: UUID) -> str:
        """Where a bank sends a customer's browser back to who has confirmed a way to pay that is to be saved."""
        return f"{self._api}/payments/methods/{customer}/{method}/return"

    def test_key(self, use: str) -> bytes:
        """The secret for one use, `api` or `webhook`, 64 hexadecimal digits; of each gateway of this kind another one."""
        use = use if self.gateway_name == "test" else f"{use} {self.gateway_name}"
        return hmac.new(shared_secret(self.test_gateway_secret), use.encode(), hashlib.sha256).hexdigest().encode()


def gateway_settings() -> GatewaySettings:
    """The settings as they are now. Raises `StackError`, one line that repeats no value, for what can't be meant."""
    made = load(GatewaySettings)
    for name, terms in made.gateways.items():
        if not find_spec(f"{__package__}.{terms.adapter or name}"):
            raise StackError(f"TITAN_GATEWAYS.{name}: there is no adapter {terms.adapter or name}")
        try:
            made.at(name)
        except ValidationError as error:
            raise refused(error, ("gateways", name, "set")) from None
    return made


@lru_cache
def shared_secret(path: Path) -> bytes:
    """The secret in a file, made when there is none. Several processes at once end up with the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        if not path.exists():
            with os.fdopen(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_hex(32).encode())
            with suppress(FileExistsError):
                os.link(mine, path)  # all or nothing, and the first one wins
        return path.read_bytes()
    finally:
        mine.unlink(missing_ok=True)
