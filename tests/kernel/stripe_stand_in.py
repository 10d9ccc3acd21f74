"""A stand-in of Stripe's API for tests: an app of our own that keeps payments in memory and refuses what Stripe would.

Every request, answer and webhook is held against Stripe's OpenAPI document (`tests/kernel/held.py`); requests also against the types
of Stripe's SDK, generated from that document for the very version that the SDK asks for. What isn't there, or not of its type, is
answered as Stripe answers it, with 400.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

import stripe
from pydantic import ConfigDict, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from stripe import params
from typing_extensions import TypedDict, is_typeddict

from streams.gateways.stripe.facts import PAYMENT
from tests.kernel.held import NO_ANSWER, Held, hold_event, stripe_api
from tests.kernel.mismatch import mismatch
from tests.kernel.openapi import Document, nested
from tests.kernel.stripe_balance import Balance

KEY, WEBHOOK_SECRET = "sk_test_standin", "whsec_standin"
VERSION = stripe.api_version
HOLD_S = 5.0


@dataclass(frozen=True)
class Card:
    """How a payment method behaves. `faults` hit the first request of a kind: carried out and not answered, or neither, or 503."""

    decline: str = ""
    action: bool = False
    several: bool = True
    refuses: frozenset[str] = frozenset()
    pending: bool = False
    faults: Mapping[str, str] = field(default_factory=dict)


CARDS = {
    "pm_card_visa": Card(),
    "pm_card_threeDSecureRequired": Card(action=True),
    "pm_card_visa_chargeDeclined": Card(decline="generic_decline"),
    "pm_card_visa_chargeDeclinedInsufficientFunds": Card(decline="insufficient_funds"),
    "pm_oneCapture": Card(several=False),
    "pm_captureFails": Card(refuses=frozenset({"capture"})),
    "pm_refundFails": Card(refuses=frozenset({"refund"})),
    "pm_refundPending": Card(pending=True),
    "pm_lostMade": Card(faults={"make": "lost"}),
    "pm_lostAuthorise": Card(faults={"authorise": "lost"}),
    "pm_droppedAuthorise": Card(faults={"authorise": "dropped"}),
    "pm_unavailable": Card(faults={"authorise": "unavailable"}),
    "pm_lostCapture": Card(faults={"capture": "lost"}),
    "pm_lostRefund": Card(faults={"refund": "lost"}),
    "pm_lostVoid": Card(faults={"void": "lost"}),
    "pm_lostAttach": Card(faults={"attach": "lost"}),
    "pm_lostDetach": Card(faults={"detach": "lost"}),
}


class Refusal(Exception):
    """400, 402 or 404, with Stripe's error object."""

    def __init__(self, status: int, type: str, code: str, message: str, **more: object) -> None:
        super().__init__(message)
        self.status, self.error = status, {"type": type, "code": code, "message": message, **more}


def invalid(code: str, message: str, status: int = 400, **more: object) -> Refusal:
    return Refusal(status, "invalid_request_error", code, message, **more)


class StripeStandIn:
    """`intents`, `refunds`, `customers` and `events` as Stripe would hold them; `keys` are the requests' idempotency keys, with what was
    asked under each. `attached`: customers by payment method; `spent`: those that can be used no more. The search lags if it is told to."""

    def __init__(self) -> None:
        self.url = ""
        self.intents: dict[str, Document] = {}
        self.refunds: dict[str, Document] = {}
        self.cards = dict(CARDS)
        self.customers: dict[str, Document] = {}
        self.attached: dict[str, str] = {}
        self.spent: set[str] = set()
        self.search_lags = False
        self.balance = Balance()
        self.events: list[Document] = []
        self.requests: list[tuple[str, str]] = []
        self.keys: list[tuple[str, str]] = []
        self._answers: dict[str, tuple[str, int, Document]] = {}
        self._tried: set[tuple[str, str]] = set()
        for kind, _ in ROUTES.values():
            types_of(kind.types)  # made now, so that no request waits for it
        app = Starlette(routes=[Route("/v1/{path:path}", self._serve, methods=["GET", "POST", "DELETE"])])
        self.app = Held(
            app, stripe_api(), under="/v1/", refusal=lambda why: {"error": invalid("parameter_unknown", why).error}
        )

    async def _serve(self, request: Request) -> Response:
        path, raw = request.url.path, await request.body()
        self.requests.append((request.method, path))
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"type": "invalid_request_error", "message": "Invalid API Key"}}, 401)
        given = nested(raw.decode() if request.method == "POST" else request.url.query)
        for (method, pattern), (kind, do) in ROUTES.items():
            if method == request.method and (found := re.fullmatch(pattern, path)):
                try:
                    return await self._answer(request, kind, do, found.groups(), given)
                except (ValidationError, AssertionError) as error:
                    mismatch(f"{request.method} {path}: {error}")
                    return JSONResponse({"error": invalid("parameter_unknown", str(error)).error}, 400)
        mismatch(f"{request.method} {path}: there is no such route")
        return JSONResponse({"error": {"type": "invalid_request_error", "message": "no such route"}}, 404)

    async def _answer(
        self, request: Request, kind: Kind, do: Callable[..., Document], path: tuple[str, ...], given: Document
    ) -> Response:
        assert request.headers.get("stripe-version") == VERSION, "the version is the SDK's"
        key = request.headers.get("idempotency-key")
        assert request.method != "POST" or key, "what is asked twice must be done once: there is no key"
        assert str(given.get("currency", "eur")).islower(), "currencies are in lower case"
        if given or request.method == "POST":
            given = types_of(kind.types).validate_python(given)
        if key:
            self.keys.append((kind.name, key))
        if key in self._answers:
            asked, status, answer = self._answers[key]
            if asked != repr((path, given)):
                error = {
                    "type": "idempotency_error",
                    "message": "Keys for idempotent requests are for the same parameters.",
                }
                return JSONResponse({"error": error}, 400)
            return JSONResponse(answer, status, {"idempotent-replayed": "true"})
        fault = self._fault(kind.name, path, given)
        if fault == "unavailable":
            return JSONResponse({"error": {"type": "api_error", "message": "try again"}}, 503)
        if fault == "dropped":
            return await hold(request)
        try:
            status, answer = 200, do(self, *path, **given)
        except Refusal as no:
            status, answer = no.status, {"error": no.error}
        answer = json.loads(json.dumps(answer))  # as it is now
        if key:
            self._answers[key] = repr((path, given)), status, answer
        return await hold(request) if fault == "lost" else JSONResponse(answer, status)

    def _fault(self, kind: str, path: tuple[str, ...], given: Document) -> str | None:
        """What befalls this request, if it is the first of its kind for the payment."""
        if kind in ("attach", "detach"):
            first = (kind, path[0]) not in self._tried
            self._tried.add((kind, path[0]))
            return self.cards[path[0]].faults.get(kind) if first and path[0] in self.cards else None
        intent = self.intents.get(path[0] if path else str(given.get("payment_intent")))
        method = given.get("payment_method") or (intent or {}).get("payment_method")
        first = (kind, intent["id"] if intent else "") not in self._tried
        card = self.cards.get(str(method))
        if card is None or not first or intent is None or kind not in card.faults:
            return None
        self._tried.add((kind, intent["id"]))
        return card.faults[kind]

    # What Stripe does.
    def card(self, like: str = "pm_card_visa") -> str:
        """A payment method that its form has made in a browser."""
        self.cards[id := f"pm_{secrets.token_hex(12)}"] = CARDS[like]
        return id

    def method(self, id: str, expand: list[str] | None = None) -> Document:
        if id not in self.cards:
            raise invalid("resource_missing", f"No such PaymentMethod: '{id}'", 404, param="payment_method")
        owner = self.attached.get(id)
        return {
            "id": id, "object": "payment_method", "type": "card", "metadata": {}, "billing_details": {},
            "customer": self.customers[owner] if owner and expand == ["customer"] else owner,
            "created": int(time.time()), "livemode": False,
        }  # fmt: skip

    def attach(self, id: str, customer: str) -> Document:
        self.method(id)
        if customer not in self.customers:
            raise invalid("resource_missing", f"No such customer: '{customer}'", 404, param="customer")
        if id in self.spent or id in self.attached:
            raise invalid("payment_method_unexpected_state", "It may not be used again, or is attached already.")
        if decline := self.cards[id].decline:
            raise Refusal(402, "card_error", "card_declined", "Your card was declined.", decline_code=decline)
        self.attached[id] = customer
        return self.method(id)

    def detach(self, id: str) -> Document:
        self.method(id)
        if self.attached.pop(id, None) is None:
            raise invalid("payment_method_unexpected_state", "It is not attached to a customer.")
        self.spent.add(id)
        return self.method(id)

    def enrol(self, metadata: Document) -> Document:
        id = f"cus_{secrets.token_hex(7)}"
        self.customers[id] = {
            "id": id, "object": "customer", "created": int(time.time()), "livemode": False, "metadata": dict(metadata),
        }  # fmt: skip
        return self.customers[id]

    def find(self, query: str, limit: int) -> Document:
        found = re.fullmatch(r'metadata\["(\w+)"\]:"([^"]+)"', query)
        assert found, query
        data = [one for one in self.customers.values() if one["metadata"].get(found[1]) == found[2]]
        data = [] if self.search_lags else data[:limit]
        return {"object": "search_result", "url": "/v1/customers/search", "has_more": False, "data": data}

    def strike_off(self, id: str) -> Document:
        if self.customers.pop(id, None) is None:
            raise invalid("resource_missing", f"No such customer: '{id}'", 404)
        self.spent |= (theirs := {method for method, owner in self.attached.items() if owner == id})
        self.attached = {method: owner for method, owner in self.attached.items() if method not in theirs}
        return {"id": id, "object": "customer", "deleted": True}

    def make(self, amount: int, currency: str, metadata: Document, **more: Any) -> Document:
        assert more == {"allowed_payment_method_types": ["card"], "capture_method": "manual"}
        if currency == "isk" and amount % 100:
            raise invalid("invalid_charge_amount_no_decimal_compatible", "ISK is effectively without decimals.")
        if amount < 50 and currency in ("eur", "usd"):
            raise invalid("amount_too_small", "Amount must be at least 50 cents.", param="amount")
        intent: Document = {
            "id": f"pi_{secrets.token_hex(12)}", "object": "payment_intent", "amount": amount, "amount_capturable": 0,
            "amount_received": 0, "capture_method": "manual", "confirmation_method": "automatic", "created": int(time.time()),
            "currency": currency, "customer": None, "last_payment_error": None, "latest_charge": None, "livemode": False,
            "metadata": dict(metadata), "next_action": None, "payment_method": None, "payment_method_types": ["card"],
            "status": "requires_payment_method",
        }  # fmt: skip
        self.intents[intent["id"]] = intent
        return intent

    def update(self, id: str, customer: str) -> Document:
        intent = self._open(id, "requires_payment_method")
        intent["customer"] = customer
        return intent

    def confirm(
        self, id: str, payment_method: str, return_url: str, payment_method_options: Document, expand: list[str]
    ) -> Document:
        intent = self._open(id, "requires_payment_method", "requires_confirmation")
        self.method(payment_method)
        card, owner = self.cards[payment_method], self.attached.get(payment_method)
        assert return_url.startswith("http") and payment_method_options == {
            "card": {"request_multicapture": "if_available"}
        }
        if owner != intent["customer"]:
            raise invalid("payment_intent_invalid_parameter", "The PaymentMethod belongs to a customer.")
        if payment_method in self.spent:
            raise invalid("payment_method_unexpected_state", "It may not be used again: attach it to a customer first.")
        if owner is None and payment_method not in CARDS:  # those are as many as are asked for
            self.spent.add(payment_method)
        intent["payment_method"] = payment_method
        if card.action:
            intent["status"] = "requires_action"
            to = {"url": f"{self.url}/hooks/{id}", "return_url": return_url}
            intent["next_action"] = {"type": "redirect_to_url", "redirect_to_url": to}
            self._tell("payment_intent.requires_action", intent)
            return self._shown(intent, expand)
        return self._decide(intent, card.decline, expand)

    def decide(self, id: str, approved: bool) -> Document:
        """The customer's answer at the bank."""
        intent = self._open(id, "requires_action")
        with suppress(Refusal):
            self._decide(intent, "" if approved else "authentication_failure", [])
        return intent

    def _decide(self, intent: Document, decline: str, expand: list[str]) -> Document:
        intent["next_action"] = None
        if decline:
            code = "payment_intent_authentication_failure" if decline == "authentication_failure" else "card_declined"
            intent["status"] = "requires_payment_method"
            intent["last_payment_error"] = {
                "type": "card_error", "code": code, "message": "Your card was declined.",
                **({"decline_code": decline} if code == "card_declined" else {}),
            }  # fmt: skip
            self._tell("payment_intent.payment_failed", intent)
            raise Refusal(402, **intent["last_payment_error"], payment_intent=dict(intent))
        intent |= {"status": "requires_capture", "amount_capturable": intent["amount"]}
        intent["latest_charge"] = f"ch_{intent['id'][3:]}"
        self._tell("payment_intent.amount_capturable_updated", intent)
        return self._shown(intent, expand)

    def capture(
        self,
        id: str,
        amount_to_capture: int,
        metadata: Document | None = None,
        final_capture: bool = True,
        expand: list[str] | None = None,
    ) -> Document:
        intent = self._open(id, "requires_capture")
        card = self.cards[intent["payment_method"]]
        if "capture" in card.refuses:
            raise Refusal(402, "card_error", "capture_charge_authorization_expired", "The bank does not pay out.")
        if amount_to_capture > intent["amount_capturable"]:
            raise invalid("amount_too_large", "More than can be captured.")
        if not final_capture and not card.several:
            raise invalid("payment_intent_invalid_parameter", "final_capture is not available for this card.")
        if not amount_to_capture and not intent["amount_received"]:
            raise invalid("parameter_invalid_integer", "Nothing to capture.")
        intent["amount_received"] += amount_to_capture
        intent["amount_capturable"] -= amount_to_capture
        intent["metadata"] |= metadata or {}
        if amount_to_capture:
            names = [name.removeprefix("capture_") for name in metadata or {} if name.startswith("capture_")]
            self._settle(intent, amount_to_capture, *names)
        if final_capture or not intent["amount_capturable"]:
            intent |= {"status": "succeeded", "amount_capturable": 0}
        done = intent["status"] == "succeeded"
        self._tell("payment_intent.succeeded" if done else "payment_intent.amount_capturable_updated", intent)
        return self._shown(intent, expand or [])

    def cancel(self, id: str) -> Document:
        intent = self._open(
            id, "requires_payment_method", "requires_confirmation", "requires_action", "requires_capture"
        )
        intent |= {"status": "canceled", "amount_capturable": 0, "next_action": None}
        self._tell("payment_intent.canceled", intent)
        return intent

    def refund(self, payment_intent: str, amount: int, metadata: Document) -> Document:
        intent = self._intent(payment_intent)
        if amount > intent["amount_received"] - self._given_back(payment_intent):
            raise invalid("charge_already_refunded", "More than is left of what was captured.")
        card = self.cards[intent["payment_method"]]
        status = "failed" if "refund" in card.refuses else "pending" if card.pending else "succeeded"
        refund: Document = {
            "id": f"re_{secrets.token_hex(12)}", "object": "refund", "amount": amount, "created": int(time.time()),
            "currency": intent["currency"], "metadata": dict(metadata), "payment_intent": payment_intent, "status": status,
            **({"failure_reason": "expired_or_canceled_card"} if status == "failed" else {}),
        }  # fmt: skip
        self.refunds[refund["id"]] = refund
        self._tell("refund.created", refund)
        if status == "succeeded":
            self.balance.move("refund", "refund", -amount, refund, metadata["titan_refund"])
        return refund

    def finish(self, refund: Document) -> None:
        """What was pending is done."""
        refund["status"] = "succeeded"
        self.balance.move("refund", "refund", -refund["amount"], refund, refund["metadata"]["titan_refund"])
        self._tell("refund.updated", refund)

    def fail(self, refund: Document) -> None:
        """The bank sends back what was done."""
        assert refund["status"] == "succeeded"
        refund["status"], refund["failure_reason"] = "failed", "expired_or_canceled_card"
        ours = refund["metadata"]["titan_refund"]
        self.balance.move("refund_failure", "refund_failure", refund["amount"], refund, ours)
        self._tell("refund.failed", refund)

    def read(self, id: str, expand: list[str]) -> Document:
        return self._shown(self._intent(id), expand)

    def search(self, query: str) -> Document:
        found = re.fullmatch(r'metadata\["(\w+)"\]:"([^"]+)"', query)
        assert found, query
        data = [one for one in self.intents.values() if one["metadata"].get(found[1]) == found[2]]
        return {"object": "search_result", "url": "/v1/payment_intents/search", "has_more": False, "data": data}

    def refunds_of(self, payment_intent: str, limit: int) -> Document:
        assert 1 <= limit <= 100
        data = [one for one in self.refunds.values() if one["payment_intent"] == payment_intent]
        return {"object": "list", "url": "/v1/refunds", "has_more": False, "data": data}

    def dispute(self, intent: Document, amount: int) -> None:
        """The bank takes money back."""
        dispute = {
            "id": f"du_{secrets.token_hex(12)}", "object": "dispute", "amount": amount, "currency": intent["currency"],
            "charge": intent["latest_charge"], "payment_intent": intent["id"], "metadata": {}, "balance_transactions": [],
            "created": int(time.time()), "enhanced_eligibility_types": [], "evidence": {"enhanced_evidence": {}},
            "evidence_details": {"enhanced_eligibility": {}, "has_evidence": False, "past_due": False, "submission_count": 0},
            "is_charge_refundable": False, "livemode": False, "reason": "fraudulent", "status": "needs_response",
        }  # fmt: skip
        self.balance.move("dispute", "adjustment", -amount, dispute)

    def forget_keys(self) -> None:
        """A day passes: idempotency keys are free again."""
        self._answers.clear()

    # What a test wants to know.
    def totals(self) -> tuple[int, int]:
        """Captured and refunded in all, minor units."""
        back = sum(one["amount"] for one in self.refunds.values() if one["status"] == "succeeded")
        return sum(one["amount_received"] for one in self.intents.values()), back

    def webhooks(self) -> list[tuple[dict[str, str], bytes]]:
        """The webhooks since the last time, signed now."""
        told, self.events = self.events, []
        return [self.signed(one) for one in told]

    @staticmethod
    def signed(event: object, at: int | None = None, secret: str = WEBHOOK_SECRET) -> tuple[dict[str, str], bytes]:
        body = json.dumps(event)
        signature = stripe.WebhookSignature.generate_signature_header(body, secret, at)
        return {"stripe-signature": signature}, body.encode()

    def _intent(self, id: str) -> Document:
        if id not in self.intents:
            raise invalid("resource_missing", f"No such payment_intent: '{id}'", 404)
        return self.intents[id]

    def _open(self, id: str, *statuses: str) -> Document:
        intent = self._intent(id)
        if intent["status"] not in statuses:
            why = f"This PaymentIntent's status is {intent['status']}."
            raise invalid("payment_intent_unexpected_state", why, payment_intent=dict(intent))
        return intent

    def _given_back(self, intent: str) -> int:
        its = [one for one in self.refunds.values() if one["payment_intent"] == intent]
        return sum(one["amount"] for one in its if one["status"] != "failed")

    def _settle(self, intent: Document, amount: int, capture: str = "") -> None:
        """One that can be captured once only is charged whole, and what is not captured is reversed."""
        several = self.cards[intent["payment_method"]].several
        operation = str(UUID(capture)) if capture else ""
        self.balance.move("charge", "charge", amount if several else intent["amount"], self._charge(intent), operation)
        if not several and amount < intent["amount"]:
            left = amount - intent["amount"]
            self.balance.move("partial_capture_reversal", "refund", left, self._charge(intent), operation)

    def _charge(self, intent: Document) -> Document:
        several = "available" if self.cards[intent["payment_method"]].several else "unavailable"
        card = {
            "brand": "visa", "exp_month": 12, "exp_year": 2040, "last4": "4242", "capture_before": intent["created"] + 6 * 86_400,
            "multicapture": {"status": several},
        }  # fmt: skip
        back = self._given_back(intent["id"])
        return {
            "id": intent["latest_charge"], "object": "charge", "amount": intent["amount"], "currency": intent["currency"],
            "amount_captured": intent["amount_received"], "amount_refunded": back, "billing_details": {}, "created": intent["created"],
            "captured": intent["amount_received"] > 0, "disputed": False, "livemode": False, "metadata": {PAYMENT: intent["metadata"][PAYMENT]},
            "paid": True, "payment_intent": intent["id"], "payment_method_details": {"type": "card", "card": card},
            "refunded": 0 < back == intent["amount_received"], "status": "succeeded",
        }  # fmt: skip

    def _shown(self, intent: Document, expand: list[str]) -> Document:
        expanded = intent["latest_charge"] and expand == ["latest_charge"]
        return {**intent, "latest_charge": self._charge(intent)} if expanded else intent

    def _tell(self, type: str, about: Document) -> None:
        event = {
            "id": f"evt_{secrets.token_hex(12)}", "object": "event", "type": type, "api_version": VERSION,
            "created": int(time.time()), "livemode": False, "pending_webhooks": 1,
            "data": {"object": json.loads(json.dumps(about))},
        }  # fmt: skip
        hold_event(event)
        self.events.append(event)


@dataclass(frozen=True)
class Kind:
    name: str
    types: Any


INTENTS = "/v1/payment_intents"
ROUTES: dict[tuple[str, str], tuple[Kind, Callable[..., Document]]] = {
    ("GET", "/v1/payment_methods/(pm_.+)"): (Kind("", params.PaymentMethodRetrieveParams), StripeStandIn.method),
    ("POST", "/v1/payment_methods/(pm_\\w+)/attach"): (Kind("attach", params.PaymentMethodAttachParams), StripeStandIn.attach),
    ("POST", "/v1/payment_methods/(pm_\\w+)/detach"): (Kind("detach", params.PaymentMethodDetachParams), StripeStandIn.detach),
    ("POST", "/v1/customers"): (Kind("enrol", params.CustomerCreateParams), StripeStandIn.enrol),
    ("GET", "/v1/customers/search"): (Kind("", params.CustomerSearchParams), StripeStandIn.find),
    ("DELETE", "/v1/customers/(cus_\\w+)"): (Kind("", params.CustomerDeleteParams), StripeStandIn.strike_off),
    ("POST", INTENTS): (Kind("make", params.PaymentIntentCreateParams), StripeStandIn.make),
    ("GET", f"{INTENTS}/search"): (Kind("", params.PaymentIntentSearchParams), StripeStandIn.search),
    ("GET", f"{INTENTS}/(pi_\\w+)"): (Kind("", params.PaymentIntentRetrieveParams), StripeStandIn.read),
    ("POST", f"{INTENTS}/(pi_\\w+)"): (Kind("update", params.PaymentIntentUpdateParams), StripeStandIn.update),
    ("POST", f"{INTENTS}/(pi_\\w+)/confirm"): (
        Kind("authorise", params.PaymentIntentConfirmParams), StripeStandIn.confirm),
    ("POST", f"{INTENTS}/(pi_\\w+)/capture"): (Kind("capture", params.PaymentIntentCaptureParams), StripeStandIn.capture),
    ("POST", f"{INTENTS}/(pi_\\w+)/cancel"): (Kind("void", params.PaymentIntentCancelParams), StripeStandIn.cancel),
    ("POST", "/v1/refunds"): (Kind("refund", params.RefundCreateParams), StripeStandIn.refund),
    ("GET", "/v1/refunds"): (Kind("", params.RefundListParams), StripeStandIn.refunds_of),
    ("GET", "/v1/balance_transactions"): (Kind("", params.BalanceTransactionListParams), lambda shop, **asked: shop.balance.listed(**asked)),
}  # fmt: skip


@cache
def types_of(kind: Any) -> TypeAdapter[Any]:
    """The validator of the SDK's type, which takes nothing that the type doesn't name, nor the options of a request, which the SDK's
    types name too and the SDK takes out itself."""
    names = vars(sys.modules[kind.__module__])
    options = stripe.RequestOptions.__annotations__
    of_request = {name: type for name, type in kind.__annotations__.items() if name not in options}
    wanted: Any = TypedDict(kind.__name__, of_request)  # type: ignore[misc]  # a type made of another one
    wanted.__module__ = kind.__module__
    for one in (wanted, *names.values()):
        if is_typeddict(one):
            one.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return TypeAdapter(wanted)


async def hold(request: Request) -> Response:
    """No answer: until the caller hangs up."""
    with suppress(TimeoutError):
        async with asyncio.timeout(HOLD_S):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    return Response(status_code=NO_ANSWER)
