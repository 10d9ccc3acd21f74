"""The adapter of Adyen, on Adyen's own SDK for its Checkout API. A payment is one authorisation of a stored card, captured by hand.

Each request goes under our own id as idempotency key, which Adyen keeps for a month: sent again it is answered as it was, and not
carried out. There is no other way to ask Adyen for a payment, so that is how an authorisation without an answer is looked up, and
how one is found whose answer never came and which is to be given back. Captures, refunds and cancellations are only received; what
came of them is told by a webhook. They go under `<payment>.<operation>`, which the webhook names again.

A card is stored by a payment of nothing, which verifies it, for a shopper whose reference is our customer's id; for that shopper alone
it is charged afterwards. Adyen's form encrypts the card in the browser: what it makes is passed on and kept nowhere.

The account needs "multiple partial captures", or Adyen itself gives back what a first capture leaves, and "recurring details" among the
additional data of its answers. The SDK waits for its answers, so each request has a thread.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import Adyen
import httpx
import orjson
from Adyen.util import is_valid_hmac_notification

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways.adyen.facts import facts_of, facts_of_notice, references, refusal
from streams.gateways.adyen.settlement import fetch, rows_of
from streams.gateways.interface import Confirm, Declined, Fact, Forged, Notice, Unknown, Unreached, fact
from streams.gateways.minor import ADYEN
from streams.gateways.settings import GatewaySettings
from streams.gateways.settlement import Settled

METHOD = "adyen_"  # before Adyen's id of a stored card: some are digits alone
VERSION = 71  # of the Checkout API
SDK_URL = "https://checkout-test.adyen.com"  # where the SDK sends everything, if not told better
REQUESTS_MAX = 32  # at a time
SIGNED = (
    "pspReference",
    "originalReference",
    "merchantAccountCode",
    "merchantReference",
    "eventCode",
)  # joined by colons
STORED = (
    "tokenization.storedPaymentMethodId",
    "recurring.recurringDetailReference",
)  # Adyen's words for it, new and old
IN_PROGRESS = "704"  # the first request under this key is not answered yet

Document = dict[str, Any]


class Refused(Exception):
    """Adyen is certain not to have done it. The arguments are code and reason."""


class AdyenGateway:
    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(REQUESTS_MAX, thread_name_prefix="adyen")  # none until it is used
        self._http: _Http | None = None
        self._sdk: Any = None

    async def authorise(self, payment: Payment) -> Sequence[Fact]:
        try:
            return facts_of(await self._authorised(payment))
        except Refused as no:
            return [fact(Payment.declined, *no.args)]

    async def capture(self, payment: Payment, capture: UUID, amount: Money) -> Sequence[Fact]:
        try:
            asked = {**self._about(payment, capture), "amount": _amount(amount)}
            await self._ask(self._changes.capture_authorised_payment, asked, payment.transaction, key=capture)
        except Refused as no:
            return [fact(Payment.capture_failed, capture, amount, *no.args)]
        return []

    async def void(self, payment: Payment) -> Sequence[Fact]:
        if payment.transaction:
            await self._give_back(payment, payment.transaction)
            return []
        try:
            found = await self._authorised(payment)
        except Refused:
            return [fact(Payment.voided, "")]  # what Adyen doesn't even take is never authorised
        match found["resultCode"]:
            case "Authorised":
                await self._give_back(payment, found["pspReference"])
                return [fact(Payment.voided, found["pspReference"])]  # only we could capture it, and we never do
            case "RedirectShopper":  # nothing is held, and `returned` is not asked for a payment that is being voided
                asked = {**self._about(payment, payment.void_id), "paymentReference": str(payment.id)}
                await self._certain(self._changes.cancel_authorised_payment, asked, key=payment.void_id)
                return [fact(Payment.voided, "")]
        return facts_of(found)

    async def refund(self, payment: Payment, refund: UUID, amount: Money) -> Sequence[Fact]:
        try:
            asked = {**self._about(payment, refund), "amount": _amount(amount)}
            await self._ask(self._changes.refund_captured_payment, asked, payment.transaction, key=refund)
        except Refused as no:
            return [fact(Payment.refund_failed, refund, amount, *no.args)]
        return []

    async def lookup(self, payment: Payment) -> Sequence[Fact]:
        """Sends an authorisation that is without an answer again. What else Adyen knows its webhooks tell."""
        return await self.authorise(payment) if payment.authorisation == "requested" else []

    async def returned(self, payment: Payment, query: Mapping[str, str]) -> Sequence[Fact]:
        """The customer's browser is back from the bank. Raises `Unknown`: a webhook will tell."""
        if "redirectResult" not in query:
            return []
        found = await self._back(query["redirectResult"], str(payment.id))
        return facts_of(found)

    async def attach(self, customer: UUID, method: UUID, token: str, details: Mapping[str, str]) -> str | Confirm:
        if token:  # a card that the shop had stored itself
            if id_of(token) in await self._stored(customer):
                return token
            raise Declined("invalid_method", "It is not stored for this customer.")
        terms = self._settings.gateways.get(self._settings.gateway_name)
        currency = min((terms and terms.currencies) or ("EUR",))
        asked = {
            "merchantAccount": self._settings.adyen_merchant_account,
            "reference": _reference(customer, method),
            "amount": {"value": 0, "currency": currency},
            "paymentMethod": {"type": "scheme", **details},
            "storePaymentMethod": True,
            "shopperReference": str(customer),
            "shopperInteraction": "Ecommerce",
            "recurringProcessingModel": "CardOnFile",
            "returnUrl": self._settings.method_return_url(customer, method),
            "redirectToIssuerMethod": "GET",
        }
        once = uuid5(method, "\n".join(f"{name}={text}" for name, text in sorted(details.items())))
        try:
            return _stored_as(await self._ask(self._payments.payments, asked, key=uuid5(customer, str(once))))
        except Refused as no:
            raise Declined(*no.args) from no

    async def confirmed(self, customer: UUID, method: UUID, query: Mapping[str, str]) -> str:
        if "redirectResult" not in query:
            raise Unknown("the bank says nothing of it")
        found = await self._back(query["redirectResult"], _reference(customer, method))
        token = _stored_as(found)
        if isinstance(token, Confirm):
            raise Unknown("the bank asks for more")
        return token

    async def detach(self, customer: UUID, token: str) -> None:
        shopper = self._shopper(customer)
        for id in await self._stored(customer):
            if not token or id == id_of(token):
                await self._certain(self._recurring.delete_token_for_stored_payment_details, id, **shopper)

    async def _stored(self, customer: UUID) -> Sequence[str]:
        """Adyen's ids of the customer's stored cards."""
        found = await self._certain(self._recurring.get_tokens_for_stored_payment_details, **self._shopper(customer))
        return [one["id"] for one in found.get("storedPaymentMethods", ())]

    def _shopper(self, customer: UUID) -> Document:
        account = self._settings.adyen_merchant_account
        return {"query_parameters": {"merchantAccount": account, "shopperReference": str(customer)}}

    async def _back(self, result: str, reference: str) -> Document:
        """What Adyen makes of what the bank said. Raises `Unknown` if that is of something else."""
        once = uuid5(NAMESPACE_URL, result)  # whatever it is brought for
        found = await self._certain(self._payments.payments_details, {"details": {"redirectResult": result}}, key=once)
        if found.get("merchantReference") != reference:
            raise Unknown("what the bank says is of another payment")
        return found

    @property
    def within(self) -> timedelta:
        return self._settings.settles_within(usual=3)

    async def settlement(self, day: date) -> bytes:
        return await fetch(self._settings, day)

    def settled(self, report: bytes) -> Sequence[Settled]:
        return rows_of(report, self._settings.adyen_merchant_account)

    def notice(self, header: Callable[[str], str | None], body: bytes, now: datetime) -> Notice | None:
        """Its signature has no time: a webhook that is sent again, by whomever, does nothing a second time."""
        try:
            told = orjson.loads(body)
            [item] = [one["NotificationRequestItem"] for one in told["notificationItems"]]
        except (ValueError, KeyError, TypeError) as error:
            raise Forged("this is none of Adyen's webhooks") from error
        try:
            keys = [one.get_secret_value() for one in self._settings.adyen_hmac_keys]
            told_apart = not any(":" in str(item.get(name)) for name in SIGNED)
            if not told_apart or not any(is_valid_hmac_notification(item, key) for key in keys):
                raise Forged("the signature does not fit")
            payment, operation = references(item["merchantReference"])
            if payment is None or item["merchantAccountCode"] != self._settings.adyen_merchant_account:
                return None
            id = f"{item['eventCode']} {item['pspReference']} {item['success']}"
            return Notice(id, payment, facts_of_notice(item, operation))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Forged("this is none of Adyen's webhooks") from error

    async def close(self) -> None:
        if self._http is not None:
            self._threads.shutdown(wait=False)
            self._http.close()

    async def _authorised(self, payment: Payment) -> Document:
        """Adyen's answer to the payment, which is the first one, however often it is asked for."""
        asked = {
            "merchantAccount": self._settings.adyen_merchant_account,
            "reference": str(payment.id),
            "amount": _amount(payment.amount),
            "paymentMethod": {"type": "scheme", "storedPaymentMethodId": id_of(payment.method)},
            "shopperReference": str(payment.customer),
            "shopperInteraction": "ContAuth",
            "recurringProcessingModel": "CardOnFile",
            "returnUrl": self._settings.gateway_return_url(payment.id),
            "redirectToIssuerMethod": "GET",
            "additionalData": {"manualCapture": "true"},
        }
        return await self._ask(self._payments.payments, asked, key=payment.id)

    async def _give_back(self, payment: Payment, transaction: str) -> None:
        cancel = self._changes.cancel_authorised_payment_by_psp_reference
        await self._certain(cancel, self._about(payment, payment.void_id), transaction, key=payment.void_id)

    def _about(self, payment: Payment, operation: UUID) -> Document:
        return {"merchantAccount": self._settings.adyen_merchant_account, "reference": f"{payment.id}.{operation}"}

    @property
    def _payments(self) -> Any:
        return self._client.checkout.payments_api

    @property
    def _recurring(self) -> Any:
        return self._client.checkout.recurring_api

    @property
    def _changes(self) -> Any:
        return self._client.checkout.modifications_api

    @property
    def _client(self) -> Any:
        if self._sdk is None:  # who only reads webhooks needs none
            key = self._settings.adyen_api_key
            if key is None or self._settings.adyen_merchant_account is None:
                raise Unreached("the gateway is not reached: its key or its merchant account is not set")
            self._http = _Http(self._settings)
            self._sdk = Adyen.Adyen(xapikey=key.get_secret_value(), platform="test")
            self._sdk.client.api_checkout_version = VERSION
            self._sdk.client.http_client, self._sdk.client.http_init = self._http, True
        return self._sdk

    async def _certain(self, call: Callable[..., Any], *args: Any, key: UUID | None = None, **more: Any) -> Document:
        """For what Adyen has no reason to refuse."""
        try:
            return await self._ask(call, *args, key=key, **more)
        except Refused as no:
            raise Unknown(f"it refuses: {no.args[0]}") from no

    async def _ask(self, call: Callable[..., Any], *args: Any, key: UUID | None, **more: Any) -> Document:
        """Raises `Refused` or `Unknown`. Nothing of what was sent is repeated: not the key, nor the token. `key`: for what is done once."""
        try:
            async with asyncio.timeout(2 * self._settings.gateway_timeout_s):
                once = partial(call, *args, idempotency_key=key and str(key), **more)
                answer: Document = (await asyncio.get_running_loop().run_in_executor(self._threads, once)).message
                return answer
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreached(f"the gateway is not reached: {type(error).__name__}") from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise Unknown(f"no answer: {type(error).__name__}") from error
        except Adyen.AdyenError as error:
            said = error.message if isinstance(error.message, dict) else {}
            code = str(said.get("errorCode") or error.status_code)
            if error.status_code in (400, 422) and code != IN_PROGRESS:
                raise Refused(f"adyen_{code}", said.get("message") or "It is refused.") from error
            raise Unknown(f"it answers {error.status_code}: {code}") from error


class _Http:
    """What the SDK sends its requests with: with our time-outs, connections that are kept, and to where the settings say."""

    user_agent = f"{Adyen.settings.LIB_NAME}/{Adyen.settings.LIB_VERSION}"

    def __init__(self, settings: GatewaySettings) -> None:
        self._url = settings.adyen_url.rstrip("/")
        limits = httpx.Limits(max_connections=REQUESTS_MAX)
        self._client = httpx.Client(timeout=settings.gateway_timeout_s, limits=limits)

    def request(
        self, method: str, url: str, json: Document | None, xapikey: str, headers: Mapping[str, str]
    ) -> tuple[str, Document | None, int, Mapping[str, str]]:
        to = self._url + url.removeprefix(SDK_URL)
        answer = self._client.request(method, to, json=json, headers={**headers, "x-api-key": xapikey})
        return answer.text, None, answer.status_code, answer.headers  # None: no error carries what was sent

    def close(self) -> None:
        self._client.close()


def token_of(id: str) -> str:
    """Our token of a stored card. Where Adyen's id is digits alone they are kept apart, or it might look like a card number."""
    return METHOD + ("x".join(re.findall("..?.?.?", id)) if id.isdigit() else id)


def id_of(token: str) -> str:
    """Adyen's id of a stored card."""
    id = token.removeprefix(METHOD)
    return id.replace("x", "") if re.fullmatch("[0-9x]+", id) else id


def _reference(customer: UUID, method: UUID) -> str:
    """Of the payment of nothing that stores a card: none of a payment of ours, so its webhooks say nothing to us. 80 characters at most."""
    return f"method-{customer}-{method}"


def _stored_as(found: Document) -> str | Confirm:
    """What became of the payment that stores a card. Raises `Declined`, or `Unknown`."""
    match found.get("resultCode"):
        case "Authorised":
            more = found.get("additionalData") or {}
            for id in filter(None, map(more.get, STORED)):
                return token_of(id)
            raise Unknown("it does not say under which token the card is stored: the account leaves that out")
        case "RedirectShopper" if url := (found.get("action") or {}).get("url"):
            return Confirm(url)
        case "Refused" | "Cancelled" | "Error":
            raise Declined(*refusal(found))
    raise Unknown("it has not decided")


def _amount(amount: Money) -> Document:
    """Raises `Refused`."""
    try:
        return {"value": ADYEN.theirs(amount), "currency": amount.currency}
    except ValueError as wrong:
        raise Refused("invalid_amount", str(wrong)) from wrong


def connect(settings: GatewaySettings) -> AdyenGateway:
    return AdyenGateway(settings)
