"""Each gateway with what stands in for its vendor, for the contract that all of them keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import UUID

import httpx
from pydantic import SecretStr

from streams.gateways.adyen import token_of
from streams.gateways.routing import Terms
from streams.gateways.settings import GatewaySettings
from tests.api.kernel.conftest import serving
from tests.kernel import adyen_stand_in
from tests.kernel.adyen_stand_in import AdyenStandIn
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

    def held(self, payment: UUID) -> int:
        """What the vendor still holds for the payment, minor units."""

    def decide(self, url: str, approved: bool) -> Mapping[str, str]:
        """The customer's answer at the page to which the gateway sent them; the query with which their browser comes back."""

    def webhooks(self) -> list[Webhook]:
        """Headers and body of what the vendor told since the last time."""

    def form(self, card: str) -> tuple[str, Mapping[str, str]]:
        """What the vendor's form in a browser makes of a card that behaves so: a token, or encrypted details."""

    def kept(self, customer: UUID) -> set[str]:
        """The tokens of what the vendor keeps of the customer's."""

    def err(self, operation: UUID, error: str) -> None:
        """From now on the vendor's reports are wrong about our capture or refund: it is `omitted`, `doubled`, of another `amount`,
        `currency` or `fee`, of somebody `unknown`, or a day late, `next_day`."""

    def reverse(self, payment: UUID, operation: UUID) -> None:
        """The bank takes back a refund of ours, or a capture if it ever does, that was done."""


class TestSite:
    __test__ = False
    name: str = "test"
    cards: Mapping[str, str] = {
        "good": "tok_visa", "declined": "tok_insufficientFunds", "action": "tok_requiresAction", "unknown": "tok_nobody",
        "lost authorise": "tok_timeoutCharged", "dropped authorise": "tok_timeoutNotCharged", "unavailable": "tok_unavailable",
        "lost capture": "tok_timeoutCapture", "lost void": "tok_timeoutVoid", "lost refund": "tok_timeoutRefund",
        "capture fails": "tok_captureFails", "refund fails": "tok_refundFails", "lost attach": "tok_timeoutAttach",
        "lost detach": "tok_timeoutDetach", "other": "tok_mastercard",
    }  # fmt: skip

    def __init__(self, settings: GatewaySettings, shop: httpx.Client) -> None:
        self.settings, self._shop = settings, shop

    def totals(self) -> tuple[int, int]:
        euros = self._shop.get("/totals").json().get("EUR", {"captured": 0, "refunded": 0})
        return euros["captured"], euros["refunded"]

    def held(self, payment: UUID) -> int:
        found = self._shop.get(f"/payments/{payment}").json()
        return int(found["amount"] - found["captured"]) if found["status"] == "authorised" else 0

    def decide(self, url: str, approved: bool) -> Mapping[str, str]:
        httpx.post(url, params={"answer": "yes" if approved else "no"}).raise_for_status()
        return {}

    def webhooks(self) -> list[Webhook]:
        return []  # they are sent by the gateway itself: tests/streams/test_gateways.py

    def form(self, card: str) -> tuple[str, Mapping[str, str]]:
        return self.cards[card], {}

    def kept(self, customer: UUID) -> set[str]:
        return set(self._shop.get(f"/customers/{customer}/methods").json()["methods"])

    def err(self, operation: UUID, error: str) -> None:
        self._shop.put(f"/errors/{operation}", params={"error": error}).raise_for_status()

    def reverse(self, payment: UUID, operation: UUID) -> None:
        self._shop.put(f"/reversals/{operation}").raise_for_status()


class StripeSite:
    name: str = "stripe"
    cards: Mapping[str, str] = {
        "good": "pm_card_visa", "declined": "pm_card_visa_chargeDeclinedInsufficientFunds", "unknown": "pm_nobody",
        "action": "pm_card_threeDSecureRequired", "lost authorise": "pm_lostAuthorise", "dropped authorise": "pm_droppedAuthorise",
        "unavailable": "pm_unavailable", "lost capture": "pm_lostCapture", "lost void": "pm_lostVoid",
        "lost refund": "pm_lostRefund", "capture fails": "pm_captureFails", "refund fails": "pm_refundFails",
        "lost attach": "pm_lostAttach", "lost detach": "pm_lostDetach", "other": "pm_oneCapture",
    }  # fmt: skip

    def __init__(self, settings: GatewaySettings, vendor: StripeStandIn) -> None:
        self.settings, self.vendor = settings, vendor

    def totals(self) -> tuple[int, int]:
        return self.vendor.totals()

    def held(self, payment: UUID) -> int:
        mine = [one for one in self.vendor.intents.values() if one["metadata"].get("titan_payment") == str(payment)]
        return sum(one["amount_capturable"] for one in mine)

    def decide(self, url: str, approved: bool) -> Mapping[str, str]:
        self.vendor.decide(url.rpartition("/")[2], approved)
        return {}

    def webhooks(self) -> list[Webhook]:
        return self.vendor.webhooks()

    def form(self, card: str) -> tuple[str, Mapping[str, str]]:
        return self.vendor.card(self.cards[card]), {}

    def kept(self, customer: UUID) -> set[str]:
        mine = {id for id, one in self.vendor.customers.items() if one["metadata"]["titan_customer"] == str(customer)}
        return {method for method, owner in self.vendor.attached.items() if owner in mine}

    def err(self, operation: UUID, error: str) -> None:
        self.vendor.balance.errors[str(operation)] = error

    def reverse(self, payment: UUID, operation: UUID) -> None:
        [refund] = [
            one for one in self.vendor.refunds.values() if one["metadata"]["titan_refund"] == str(operation)
        ]  # a card's captures are final at Stripe
        self.vendor.fail(refund)


class AdyenSite:
    name: str = "adyen"
    cards: Mapping[str, str] = {
        "good": "adyen_M5N7TQ4TG5PFWR50", "declined": "adyen_DECLINED", "unknown": "adyen_NOBODY", "action": "adyen_ACTION",
        "lost authorise": "adyen_LOSTAUTHORISE", "dropped authorise": "adyen_DROPPEDAUTHORISE",
        "unavailable": "adyen_UNAVAILABLE", "lost capture": "adyen_LOSTCAPTURE", "lost void": "adyen_LOSTVOID",
        "lost refund": "adyen_LOSTREFUND", "capture fails": "adyen_CAPTUREFAILS", "refund fails": "adyen_REFUNDFAILS",
        "lost attach": "adyen_LOSTAUTHORISE", "lost detach": "adyen_LOSTDETACH", "other": "adyen_REFUNDFAILS",
    }  # fmt: skip

    def __init__(self, settings: GatewaySettings, vendor: AdyenStandIn) -> None:
        self.settings, self.vendor = settings, vendor

    def totals(self) -> tuple[int, int]:
        return self.vendor.totals()

    def held(self, payment: UUID) -> int:
        return self.vendor.held(str(payment))

    def decide(self, url: str, approved: bool) -> Mapping[str, str]:
        return self.vendor.decide(url.rpartition("/")[2], approved)

    def webhooks(self) -> list[Webhook]:
        return self.vendor.webhooks()

    def form(self, card: str) -> tuple[str, Mapping[str, str]]:
        return "", self.vendor.form(self.cards[card].removeprefix("adyen_"))

    def kept(self, customer: UUID) -> set[str]:
        return {token_of(id) for id, (shopper, _) in self.vendor.stored.items() if shopper == str(customer)}

    def err(self, operation: UUID, error: str) -> None:
        self.vendor.books.errors[str(operation)] = error

    def reverse(self, payment: UUID, operation: UUID) -> None:
        self.vendor.fail(f"{payment}.{operation}")


@contextmanager
def site(name: str, folder: Path, terms: Terms | None = None, **fields: object) -> Iterator[Site]:
    """The gateway of that name and its vendor, up."""
    terms = terms or Terms()
    patience_s = 0.5 if name == "test" else 1.0  # the vendors' stand-ins share the test's own process, which is slower
    plain = gateway_settings(folder, **{"gateways": {name: terms}, "gateway_timeout_s": patience_s, **fields})
    if name == "test":
        with running_gateway(plain) as shop:
            yield TestSite(plain, shop)
    elif name == "stripe":
        stripe = StripeStandIn()
        stripe.balance.terms = terms
        with serving(stripe.app) as url:
            stripe.url = url
            yield StripeSite(plain.model_copy(update=stripe_fields(url)), stripe)
    elif name == "adyen":
        adyen = AdyenStandIn()
        adyen.books.terms = terms
        with serving(adyen.app) as url:
            adyen.url = url
            yield AdyenSite(plain.model_copy(update=adyen_fields(url)), adyen)


def stripe_fields(url: str) -> dict[str, object]:
    """The settings for a stand-in of Stripe at that URL."""
    return {
        "stripe_url": url,
        "stripe_secret_key": SecretStr(KEY),
        "stripe_webhook_secrets": (SecretStr("whsec_new"), SecretStr(WEBHOOK_SECRET)),
    }


def adyen_fields(url: str) -> dict[str, object]:
    """The settings for a stand-in of Adyen at that URL."""
    return {
        "adyen_url": url,
        "adyen_api_key": SecretStr(adyen_stand_in.KEY),
        "adyen_merchant_account": adyen_stand_in.ACCOUNT,
        "adyen_reports_url": url,
        "adyen_report_user": adyen_stand_in.REPORT_USER,
        "adyen_report_password": SecretStr(adyen_stand_in.REPORT_PASSWORD),
        "adyen_hmac_keys": (SecretStr("00" * 32), SecretStr(adyen_stand_in.HMAC_KEY)),
    }
