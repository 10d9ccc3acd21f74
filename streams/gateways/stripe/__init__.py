"""The adapter of Stripe, on Stripe's own SDK. A payment is one PaymentIntent, captured by hand.

It is made first, under the payment's id as idempotency key, which moves no money and depends on nothing but the payment, and is then
confirmed. So whoever makes it again gets the same one, to read it or to cancel it before a confirmation that comes late. Such a key
holds for a day; what is older is found by its metadata. What was captured under which id stands in the PaymentIntent's metadata,
where Stripe writes it in one step with the capture; a refund has its ids in its own.

A way to pay that is saved is attached to a customer of Stripe's, who has our customer's id in its metadata, and is charged in that
customer's name alone. Each payment of it is made in the person's presence, who confirms it if the bank wants that: so it needs no
SetupIntent, which is for those that are not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import httpx
import orjson
import stripe
from stripe import ListObject, StripeClient, StripeObject, V1Services, params

from aggregates.kernel import Money
from aggregates.payment import OPERATIONS_MAX, Payment
from streams.gateways.interface import Confirm, Declined, Fact, Forged, Notice, Unknown, Unreached, fact
from streams.gateways.minor import STRIPE
from streams.gateways.settings import GatewaySettings
from streams.gateways.settlement import Settled
from streams.gateways.signature import TOLERANCE_S
from streams.gateways.stripe.facts import (
    CAPTURE,
    CUSTOMER,
    PAYMENT,
    REFUND,
    charge_of,
    error_of,
    facts_of,
    facts_of_refund,
)
from streams.gateways.stripe.settlement import asked_for, report_of, rows_of

logging.getLogger("stripe").setLevel(logging.WARNING)  # it would log what it sends

HEADER = "stripe-signature"
CHARGE = ["latest_charge"]  # expanded: it tells until when the money is held, and whether several captures can be made
OVER = ("canceled", "succeeded")  # nothing is held any more
REFUSED = (stripe.CardError, stripe.InvalidRequestError)  # Stripe is certain not to have done it
NEVER_MADE = (ValueError, *REFUSED)  # neither is what can't even be made

Document = dict[str, Any]
T = TypeVar("T", bound=StripeObject)
A = TypeVar("A", bound=StripeObject)


class StripeGateway:
    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._http: stripe.HTTPXClient | None = None
        self._client: StripeClient | None = None

    async def authorise(self, payment: Payment) -> Sequence[Fact]:
        try:
            STRIPE.theirs(payment.amount)
            intent, owner = await asyncio.gather(self._made(payment), self._owner(payment.method, payment.customer))
        except ValueError as wrong:
            return [fact(Payment.declined, "invalid_amount", str(wrong))]
        except REFUSED as no:
            return [fact(Payment.declined, *_words(no, "invalid_method"))]
        except Declined as no:
            return [fact(Payment.declined, no.code, no.reason)]
        id = intent["id"]
        try:
            if owner:
                named: params.PaymentIntentUpdateParams = {"customer": owner}
                again: stripe.RequestOptions = {"idempotency_key": f"{payment.id}-customer"}
                await self._ask(self._v1.payment_intents.update_async(id, named, again))
            confirmed: params.PaymentIntentConfirmParams = {
                "payment_method": payment.method,
                "payment_method_options": {"card": {"request_multicapture": "if_available"}},
                "return_url": self._settings.gateway_return_url(payment.id),
                "expand": CHARGE,
            }
            once: stripe.RequestOptions = {"idempotency_key": f"{payment.id}-confirm"}
            return facts_of(await self._ask(self._v1.payment_intents.confirm_async(id, confirmed, once)))
        except REFUSED as no:  # declined, or past confirming
            return facts_of(await self._read(id)) or [fact(Payment.declined, *_words(no, "declined"))]

    async def capture(self, payment: Payment, capture: UUID, amount: Money) -> Sequence[Fact]:
        intent, name = await self._read(payment.transaction), CAPTURE + capture.hex
        if name in intent["metadata"]:
            return facts_of(intent)
        try:
            asked: params.PaymentIntentCaptureParams = {
                "amount_to_capture": STRIPE.theirs(amount),
                "metadata": {name: str(amount.amount)},
                "expand": CHARGE,
            }
            if asked["amount_to_capture"] < intent["amount_capturable"] and _several(intent):
                asked["final_capture"] = False  # or Stripe would give back what is left
            once: stripe.RequestOptions = {"idempotency_key": str(capture)}
            return facts_of(await self._ask(self._v1.payment_intents.capture_async(intent["id"], asked, once)))
        except ValueError as wrong:
            return [fact(Payment.capture_failed, capture, amount, "invalid_amount", str(wrong))]
        except REFUSED as no:
            now = await self._read(intent["id"])
            failed = fact(Payment.capture_failed, capture, amount, *_words(no, "capture_failed"))
            return facts_of(now) if name in now["metadata"] else [*facts_of(now), failed]

    async def void(self, payment: Payment) -> Sequence[Fact]:
        try:
            intent = await self._find(payment) or await self._made(payment)
            intent = await self._read(intent["id"])
        except NEVER_MADE:
            return [fact(Payment.voided, "")]
        id = intent["id"]
        try:
            if intent["status"] not in OVER and intent["amount_received"]:
                none_more: params.PaymentIntentCaptureParams = {"amount_to_capture": 0, "final_capture": True}
                intent = await self._ask(self._v1.payment_intents.capture_async(id, none_more))
            elif intent["status"] not in OVER:
                intent = await self._ask(self._v1.payment_intents.cancel_async(id))
        except REFUSED as no:
            intent = await self._read(id)
            if intent["status"] not in OVER:
                raise Unknown(f"it is {intent['status']} and not given back: {no.code}") from no
        facts = facts_of(intent)
        if intent["status"] == "succeeded" and facts[-1].call is not Payment.voided:
            facts.append(fact(Payment.voided, id))  # nothing is held any more, which is what was asked for
        return facts

    async def refund(self, payment: Payment, refund: UUID, amount: Money) -> Sequence[Fact]:
        for one in await self._refunds(payment.transaction):
            if one["metadata"].get(REFUND) == str(refund):
                return facts_of_refund(one)
        try:
            asked: params.RefundCreateParams = {
                "payment_intent": payment.transaction,
                "amount": STRIPE.theirs(amount),
                "metadata": {PAYMENT: str(payment.id), REFUND: str(refund)},
            }
            once: stripe.RequestOptions = {"idempotency_key": str(refund)}
            return facts_of_refund(await self._ask(self._v1.refunds.create_async(asked, once)))
        except ValueError as wrong:
            return [fact(Payment.refund_failed, refund, amount, "invalid_amount", str(wrong))]
        except REFUSED as no:
            return [fact(Payment.refund_failed, refund, amount, *_words(no, "refund_failed"))]

    async def lookup(self, payment: Payment) -> Sequence[Fact]:
        try:
            # The search lags by up to a minute; what is made again is the one that there may be.
            found = await self._find(payment) or await self._made(payment)
        except NEVER_MADE:
            return []
        intent = await self._read(found["id"])
        facts = facts_of(intent)
        if intent["amount_received"]:
            back = [one for refund in await self._refunds(intent["id"]) for one in facts_of_refund(refund)]
            facts[-1:] = [*back, facts[-1]] if facts[-1].call is Payment.voided else [facts[-1], *back]
        return facts

    async def attach(self, customer: UUID, method: UUID, token: str, details: Mapping[str, str]) -> str | Confirm:
        if not token:
            raise Declined("invalid_method", "Stripe's form in the browser makes a token.")
        try:
            if await self._owner(token, customer):
                return token
            asked: params.PaymentMethodAttachParams = {"customer": await self._customer(customer)}
            once: stripe.RequestOptions = {"idempotency_key": f"{token}-attach-{customer}"}
            await self._ask(self._v1.payment_methods.attach_async(token, asked, once))
        except REFUSED as no:
            raise Declined(*_words(no, "invalid_method")) from no
        return token

    async def detach(self, customer: UUID, token: str) -> None:
        if not token:  # with the customer goes all that is attached
            await self._gone(self._v1.customers.delete_async(await self._customer(customer)))
            return
        try:
            if await self._owner(token, customer):
                await self._gone(self._v1.payment_methods.detach_async(token))
        except (Declined, *REFUSED):
            return  # it is somebody else's, or there is none

    async def _owner(self, token: str, customer: UUID) -> str:
        """The id of the customer of Stripe's to whom the token is attached, empty for none. Raises `Declined` if that is another person."""
        asked: params.PaymentMethodRetrieveParams = {"expand": ["customer"]}
        owner = (await self._ask(self._v1.payment_methods.retrieve_async(token, asked))).get("customer")
        if owner and (owner.get("metadata") or {}).get(CUSTOMER) != str(customer):
            raise Declined("invalid_method", "It is not this customer's.")
        return owner["id"] if owner else ""

    async def _customer(self, customer: UUID) -> str:
        """The id of the customer of Stripe's who stands for ours; made if there is none. What the search does not find yet is what is made
        again under the same key."""
        query: params.CustomerSearchParams = {"query": f'metadata["{CUSTOMER}"]:"{customer}"', "limit": 1}
        for found in (await self._certain(self._v1.customers.search_async(query)))["data"]:
            return str(found["id"])
        asked: params.CustomerCreateParams = {"metadata": {CUSTOMER: str(customer)}}
        once: stripe.RequestOptions = {"idempotency_key": f"{customer}-customer"}
        return str((await self._certain(self._v1.customers.create_async(asked, once)))["id"])

    async def _gone(self, request: Awaitable[StripeObject]) -> None:
        """For what is to be there no more, and may be gone already."""
        try:
            await self._ask(request)
        except stripe.InvalidRequestError as no:
            if no.code != "resource_missing":
                raise Unknown(f"it refuses to forget: {no.code}") from no

    @property
    def within(self) -> timedelta:
        return self._settings.settles_within(usual=0)  # a balance transaction is made with the capture or refund

    async def settlement(self, day: date) -> bytes:
        page = await self._listed(self._v1.balance_transactions.list_async(asked_for(day)))
        found = list(page.data)
        while page.has_more:
            page = await self._listed(page.next_page_async())
            found += page.data
        return await report_of([one.to_dict() for one in found], self._read)

    def settled(self, report: bytes) -> Sequence[Settled]:
        return rows_of(report)

    def notice(self, header: Callable[[str], str | None], body: bytes, now: datetime) -> Notice | None:
        _verify([one.get_secret_value() for one in self._settings.stripe_webhook_secrets], header(HEADER), body, now)
        try:
            told = orjson.loads(body)
            id, about = str(told["id"]), told["data"]["object"]
            read = {"payment_intent": facts_of, "refund": facts_of_refund}.get(about["object"])
            if read is None or PAYMENT not in about["metadata"]:
                return None
            return Notice(id, UUID(about["metadata"][PAYMENT]), read(about))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Forged("the signature fits, but this is none of our webhooks") from error

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close_async()

    @property
    def _v1(self) -> V1Services:
        if self._client is None:  # who only reads webhooks needs none
            key = self._settings.stripe_secret_key
            if key is None:
                raise Unreached("the gateway is not reached: its secret key is not set")
            self._http = stripe.HTTPXClient(timeout=self._settings.gateway_timeout_s)
            self._client = StripeClient(
                key.get_secret_value(),
                base_addresses={"api": self._settings.stripe_url.rstrip("/")},
                max_network_retries=0,  # asking again is up to the payment
                http_client=self._http,
            )
        return self._client.v1

    async def _made(self, payment: Payment) -> Document:
        """The payment's PaymentIntent as it was when it was made, which is now unless it was before."""
        asked: params.PaymentIntentCreateParams = {
            "amount": STRIPE.theirs(payment.amount),
            "currency": payment.amount.currency.lower(),
            "allowed_payment_method_types": ["card"],
            "capture_method": "manual",
            "metadata": {PAYMENT: str(payment.id)},
        }
        once: stripe.RequestOptions = {"idempotency_key": str(payment.id)}
        return await self._ask(self._v1.payment_intents.create_async(asked, once))

    async def _find(self, payment: Payment) -> Document | None:
        if payment.transaction:
            return {"id": payment.transaction}
        query: params.PaymentIntentSearchParams = {"query": f'metadata["{PAYMENT}"]:"{payment.id}"'}
        found = await self._certain(self._v1.payment_intents.search_async(query))
        confirmed = [one for one in found["data"] if one["status"] != "requires_payment_method" or error_of(one)]
        first: list[Document] = [*confirmed, *found["data"]][:1]
        return first[0] if first else None

    async def _read(self, intent: str) -> Document:
        return await self._certain(self._v1.payment_intents.retrieve_async(intent, {"expand": CHARGE}))

    async def _refunds(self, intent: str) -> Sequence[Document]:
        page = await self._certain(self._v1.refunds.list_async({"payment_intent": intent, "limit": OPERATIONS_MAX}))
        refunds: Sequence[Document] = page["data"]
        return refunds

    async def _listed(self, request: Awaitable[ListObject[T]]) -> ListObject[T]:
        try:
            return await self._answer(request)
        except REFUSED as no:
            raise Unknown(f"it refuses to tell: {no.code}") from no

    async def _certain(self, request: Awaitable[StripeObject]) -> Document:
        """For a request that Stripe has no reason to refuse."""
        try:
            return await self._ask(request)
        except REFUSED as no:
            raise Unknown(f"it refuses to tell: {no.code}") from no

    async def _ask(self, request: Awaitable[StripeObject]) -> Document:
        """Raises as `_answer` does."""
        answer: Document = (await self._answer(request)).to_dict()
        return answer

    async def _answer(self, request: Awaitable[A]) -> A:
        """Raises `REFUSED` as they are, else `Unknown`. Nothing of what was sent is repeated: not the key, nor the token."""
        try:
            async with asyncio.timeout(2 * self._settings.gateway_timeout_s):
                return await request
        except REFUSED:
            raise
        except TimeoutError as error:
            raise Unknown("no answer: the time is up") from error
        except stripe.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
                raise Unreached(f"the gateway is not reached: {cause}") from error
            raise Unknown(f"no answer: {cause}") from error
        except stripe.StripeError as error:
            raise Unknown(f"it answers {error.http_status}: {type(error).__name__} {error.request_id or ''}") from error


def _verify(secrets: Sequence[str], header: str | None, body: bytes, now: datetime) -> None:
    """Stripe's own check of a signature, any of `secrets` will do; and ours of its time, either way, by our clock."""
    for secret in secrets:
        try:
            stripe.WebhookSignature.verify_header(body, header, secret)
        except (stripe.SignatureVerificationError, ValueError, TypeError):
            continue
        times = [part.removeprefix("t=") for part in (header or "").split(",") if part.startswith("t=")]
        if abs(now.timestamp() - int(times[0])) > TOLERANCE_S:  # the signed one: the first
            raise Forged("the signature is not of now")
        return
    raise Forged("the signature does not fit")


def _several(intent: Mapping[str, Any]) -> bool:
    """Whether the card lets more than one capture be made."""
    card = (charge_of(intent).get("payment_method_details") or {}).get("card") or {}
    return (card.get("multicapture") or {}).get("status") == "available"


def _words(no: stripe.StripeError, code: str) -> tuple[str, str]:
    """Code and reason of a refusal."""
    error = no.error.to_dict() if no.error else {}
    return error.get("decline_code") or no.code or code, no.user_message or "It is refused."


def connect(settings: GatewaySettings) -> StripeGateway:
    return StripeGateway(settings)
