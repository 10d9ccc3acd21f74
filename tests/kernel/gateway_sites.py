"""Each gateway with what stands in for its vendor, for the contract that all of them keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import httpx
from pydantic import SecretStr

from streams.gateways.routing import Terms
from streams.gateways.settings import GatewaySettings
from tests.api.kernel.conftest import serving
from tests.kernel.gateway import gateway_settings, running_gateway
from tests.kernel.stripe_stand_in import KEY, WEBHOOK_SECRET, StripeStandIn

Webhook = tuple[dict[str, str], bytes]


class Site(Protocol):
    """`cards`: the gateway's own token for each behaviour that the contract is about."""

    name: str
    settings: GatewaySettings
    cards: Mapping[str, str]

    def totals(self) -> tuple[int, int]:
        """Captured and refunded in all, as the vendor sees it, minor units of euros."""

    def decide(self, url: str, approved: bool) -> None:
        """The customer's answer at the page to which the gateway sent them."""

    def webhooks(self) -> list[Webhook]:
        """Headers and body of what the vendor told since the last time."""


class TestSite:
    __test__ = False
    name: str = "test"
    cards: Mapping[str, str] = {
        "good": "tok_visa", "declined": "tok_insufficientFunds", "action": "tok_requiresAction", "unknown": "tok_nobody",
        "lost authorise": "tok_timeoutCharged", "dropped authorise": "tok_timeoutNotCharged", "unavailable": "tok_unavailable",
        "lost capture": "tok_timeoutCapture", "lost void": "tok_timeoutVoid", "lost refund": "tok_timeoutRefund",
        "capture fails": "tok_captureFails", "refund fails": "tok_refundFails",
    }  # fmt: skip

    def __init__(self, settings: GatewaySettings, shop: httpx.Client) -> None:
        self.settings, self._shop = settings, shop

    def totals(self) -> tuple[int, int]:
        euros = self._shop.get("/totals").json().get("EUR", {"captured": 0, "refunded": 0})
        return euros["captured"], euros["refunded"]

    def decide(self, url: str, approved: bool) -> None:
        httpx.post(url, params={"answer": "yes" if approved else "no"}).raise_for_status()

    def webhooks(self) -> list[Webhook]:
        return []  # they are sent by the gateway itself: tests/streams/test_gateways.py


class StripeSite:
    name: str = "stripe"
    cards: Mapping[str, str] = {
        "good": "pm_card_visa", "declined": "pm_card_visa_chargeDeclinedInsufficientFunds", "unknown": "pm_nobody",
        "action": "pm_card_threeDSecureRequired", "lost authorise": "pm_lostAuthorise", "dropped authorise": "pm_droppedAuthorise",
        "unavailable": "pm_unavailable", "lost capture": "pm_lostCapture", "lost void": "pm_lostVoid",
        "lost refund": "pm_lostRefund", "capture fails": "pm_captureFails", "refund fails": "pm_refundFails",
    }  # fmt: skip

    def __init__(self, settings: GatewaySettings, vendor: StripeStandIn) -> None:
        self.settings, self.vendor = settings, vendor

    def totals(self) -> tuple[int, int]:
        return self.vendor.totals()

    def decide(self, url: str, approved: bool) -> None:
        self.vendor.decide(url.rpartition("/")[2], approved)

    def webhooks(self) -> list[Webhook]:
        return self.vendor.webhooks()


@contextmanager
def site(name: str, folder: Path) -> Iterator[Site]:
    """The gateway of that name and its vendor, up. Afterwards: nothing was asked that the vendor's document doesn't allow."""
    plain = gateway_settings(folder)
    if name == "test":
        with running_gateway(plain) as shop:
            yield TestSite(plain, shop)
    elif name == "stripe":
        stripe = StripeStandIn()
        with serving(stripe.app) as url:
            stripe.url = url
            yield StripeSite(plain.model_copy(update=stripe_fields(url)), stripe)
        assert not stripe.wrong


def stripe_fields(url: str) -> dict[str, object]:
    """The settings for a stand-in of Stripe at that URL."""
    return {
        "gateways": {"stripe": Terms()},
        "stripe_url": url,
        "stripe_secret_key": SecretStr(KEY),
        "stripe_webhook_secrets": (SecretStr("whsec_new"), SecretStr(WEBHOOK_SECRET)),
    }
