"""A stand-in of Adyen's Checkout API for tests: an app of our own that keeps payments in memory. Every request, answer and webhook is
held against what Adyen publishes (`tests/kernel/held.py`), and against our own facts of it, which are there without a network."""

from __future__ import annotations

import json
import re
import secrets
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from Adyen.util import generate_notification_sig
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.kernel.adyen_facts import VERSION, wrong_answer, wrong_request
from tests.kernel.adyen_report import Books, Step
from tests.kernel.held import Held, adyen_api, hold_notification
from tests.kernel.mismatch import mismatch
from tests.kernel.openapi import Document
from tests.kernel.stripe_stand_in import hold

KEY, ACCOUNT = "AQEstandin", "TitanCOM"
REPORT_USER, REPORT_PASSWORD = "report_1@Company.Titan", "report-standin"
HMAC_KEY = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"


@dataclass(frozen=True)
class Card:
    """How a stored card behaves. `fault` hits the first request of a kind: carried out and not answered, or neither, or 500."""

    decline: str = ""
    action: bool = False
    refuses: str = ""
    fault: tuple[str, str] = ("", "")


GOOD = "M5N7TQ4TG5PFWR50"
CARDS = {
    GOOD: Card(),
    "DECLINED": Card(decline="Not enough balance"),
    "ACTION": Card(action=True),
    "CAPTUREFAILS": Card(refuses="CAPTURE"),
    "REFUNDFAILS": Card(refuses="REFUND"),
    "LOSTAUTHORISE": Card(fault=("authorise", "lost")),
    "DROPPEDAUTHORISE": Card(fault=("authorise", "dropped")),
    "UNAVAILABLE": Card(fault=("authorise", "unavailable")),
    "LOSTCAPTURE": Card(fault=("captures", "lost")),
    "LOSTREFUND": Card(fault=("refunds", "lost")),
    "LOSTVOID": Card(fault=("cancels", "lost")),
    "LOSTDETACH": Card(fault=("detach", "lost")),
    "NOTOKEN": Card(),
}
DIGITS = "4012888888881881"  # some ids of stored cards are digits alone, and may look like a card number


class Wrong(Exception):
    """422, with Adyen's error."""

    def __init__(self, code: str, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.error = {"status": status, "errorCode": code, "message": message, "errorType": "validation"}


class AdyenStandIn:
    """`payments` by Adyen's reference; `keys` are the requests' idempotency keys, with what was asked under each; `changes` are the
    captures and refunds that were done, by our reference. `stored`: shopper and card by the id of a stored one; those of `CARDS` are
    stored for everybody."""

    def __init__(self) -> None:
        self.url = ""
        self.payments: dict[str, Document] = {}
        self.stored: dict[str, tuple[str, str]] = {}
        self.items: list[Document] = []
        self.keys: list[tuple[str, str]] = []
        self.changes: dict[str, Document] = {}
        self._answers: dict[str, tuple[int, Document]] = {}
        self._tried: set[tuple[str, str]] = set()
        self._results: dict[str, str] = {}
        self.books = Books(ACCOUNT)
        app = Starlette(
            routes=[
                Route("/v{version:int}/storedPaymentMethods", self._listed, methods=["GET"]),
                Route("/v{version:int}/storedPaymentMethods/{id}", self._forget, methods=["DELETE"]),
                Route("/v{version:int}/{path:path}", self._serve, methods=["POST"]),
                Route("/reports/download/MerchantAccount/{account}/{name}", self._report),
            ]
        )
        self.app = Held(app, adyen_api(), under="/v", refusal=lambda why: Wrong("702", why, 400).error)

    async def _serve(self, request: Request) -> Response:
        version, path = request.path_params["version"], f"/{request.path_params['path']}"
        body = json.loads(await request.body())
        if request.headers.get("x-api-key") != KEY:
            return JSONResponse(
                {"status": 401, "errorCode": "000", "message": "HTTP Status Response - Unauthorized"}, 401
            )
        pattern = re.sub(r"^/payments/(?!details)([^/]+)/", "/payments/{paymentPspReference}/", path)
        kind = "authorise" if path == "/payments" else path.rpartition("/")[2]
        key = request.headers.get("idempotency-key", "")
        if why := wrong_request(pattern, body) or wrong_in_words(version, key, body):
            mismatch(f"{path}: {why}")
            return JSONResponse(Wrong("702", why, 400).error, 400)
        self.keys.append((kind, key))
        if key in self._answers:
            status, answer = self._answers[key]
            return JSONResponse(answer, status, {"idempotency-key": key})
        psp = path.split("/")[2] if pattern != path else ""
        fault = self._fault(kind, psp, body)
        if fault == "unavailable":
            return JSONResponse(
                {"status": 500, "errorCode": "905", "message": "Payment details are not supported"}, 500
            )
        if fault == "dropped":
            return await hold(request)
        try:
            status, answer = 200 if kind in ("authorise", "details") else 201, self._do(kind, psp, body)
        except Wrong as wrong:
            status, answer = 422, wrong.error
        self._answers[key] = status, answer
        if why := wrong_answer(pattern, status, answer):
            mismatch(f"{path} answered {answer}: {why}")
        return await hold(request) if fault == "lost" else JSONResponse(answer, status)

    async def _listed(self, request: Request) -> Response:
        asked = request.query_params
        assert request.headers.get("x-api-key") == KEY and asked["merchantAccount"] == ACCOUNT
        mine = [id for id, (shopper, _) in self.stored.items() if shopper == asked["shopperReference"]]
        found = [{"id": id, "shopperReference": asked["shopperReference"], "type": "scheme"} for id in mine]
        return JSONResponse(
            {"merchantAccount": ACCOUNT, "shopperReference": asked["shopperReference"], "storedPaymentMethods": found}
        )

    async def _forget(self, request: Request) -> Response:
        asked, id = request.query_params, request.path_params["id"]
        assert request.headers.get("x-api-key") == KEY and asked["merchantAccount"] == ACCOUNT
        shopper, card = self.stored.get(id, ("", ""))
        if shopper != asked["shopperReference"]:
            return JSONResponse(Wrong("800", "Contract not found").error, 422)
        del self.stored[id]
        first = ("detach", id) not in self._tried
        self._tried.add(("detach", id))
        return await hold(request) if first and CARDS[card].fault == ("detach", "lost") else Response(status_code=204)

    async def _report(self, request: Request) -> Response:
        basic = b64encode(f"{REPORT_USER}:{REPORT_PASSWORD}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {basic}":
            return Response(status_code=401)
        name = re.fullmatch(r"payments_accounting_report_(\d{4})_(\d\d)_(\d\d)\.csv", request.path_params["name"])
        assert name and request.path_params["account"] == ACCOUNT
        day = date(*map(int, name.groups()))
        if day in self.books.missing:
            return Response(status_code=404)
        return Response(self.books.report(day), media_type="text/csv")

    def _do(self, kind: str, psp: str, body: Document) -> Document:
        if kind == "authorise":
            return self._pay(body)
        if kind == "details":
            return self._details(body["details"]["redirectResult"])
        if kind == "cancels" and not psp:
            return self._cancel_reference(body)
        return self._change(kind, psp, body)

    def _fault(self, kind: str, psp: str, body: Document) -> str:
        """What befalls this request, if it is the first of its kind for the payment."""
        payment = self.payments.get(psp)
        card = payment["card"] if payment else self._card(body)
        about = (kind, psp or str(body.get("reference")))
        fault = CARDS[card].fault if card in CARDS else ("", "")
        if fault[0] != kind or about in self._tried:
            return ""
        self._tried.add(about)
        return fault[1]

    @staticmethod
    def form(card: str) -> dict[str, str]:
        """What its form has encrypted in a browser."""
        return {
            "encryptedCardNumber": f"adyenjs_0_1_25${card}", "encryptedExpiryMonth": "adyenjs_0_1_25$a",
            "encryptedExpiryYear": "adyenjs_0_1_25$b", "encryptedSecurityCode": "adyenjs_0_1_25$c",
        }  # fmt: skip

    def _card(self, body: Document) -> str:
        """The card that a payment is to be by; empty for none that is the shopper's."""
        method = body.get("paymentMethod", {})
        if encrypted := method.get("encryptedCardNumber"):
            return str(encrypted.partition("$")[2])
        id = str(method.get("storedPaymentMethodId"))
        shopper, card = self.stored.get(id, (body.get("shopperReference"), id))
        return card if card in CARDS and shopper == body.get("shopperReference") else ""

    # What Adyen does.
    def _pay(self, body: Document) -> Document:
        if not (name := self._card(body)):
            raise Wrong("800", "Contract not found")
        card = CARDS[name]
        psp = secrets.token_hex(8).upper()
        payment = {
            "reference": body["reference"], "amount": body["amount"], "card": name, "status": "waits", "captured": 0, "refunded": 0,
            "stores_for": body["shopperReference"] if body.get("storePaymentMethod") else "",
        }  # fmt: skip
        self.payments[psp] = payment
        if card.action:
            self._results[psp] = ""
            url = f"{self.url}/hpp/3d/{psp}"
            action = {"type": "redirect", "method": "GET", "paymentMethodType": "scheme", "url": url}
            return {"resultCode": "RedirectShopper", "action": action}
        return self._decide(psp, card.decline)

    def _decide(self, psp: str, decline: str) -> Document:
        payment = self.payments[psp]
        payment["status"] = "refused" if decline else "authorised"
        self._book("Received", psp, payment["amount"]["value"])
        if not decline:
            self._book("Authorised", psp, payment["amount"]["value"])
        self._tell("AUTHORISATION", psp, payment["reference"], payment["amount"], decline)
        answer: Document = {"pspReference": psp, "merchantReference": payment["reference"]}
        if decline:
            return {**answer, "resultCode": "Refused", "refusalReason": decline, "refusalReasonCode": "12"}
        if shopper := payment["stores_for"]:
            known = (id for id, one in self.stored.items() if one == (shopper, payment["card"]))
            fresh = DIGITS if DIGITS not in self.stored and payment["card"] == GOOD else secrets.token_hex(8).upper()
            id = next(known, fresh)
            self.stored[id] = (shopper, payment["card"])
            told = {"recurring.recurringDetailReference": id, "recurring.shopperReference": shopper}
            answer["additionalData"] = told if payment["card"] != "NOTOKEN" else {}
        return {**answer, "resultCode": "Authorised", "amount": payment["amount"]}

    def decide(self, psp: str, approved: bool) -> dict[str, str]:
        """The customer's answer at the bank; with what their browser comes back."""
        self._results[psp] = "yes" if approved else "no"
        return {"redirectResult": psp}

    def _details(self, result: str) -> Document:
        if not self._results.get(result) or self.payments[result]["status"] != "waits":
            raise Wrong("704", "request already processed or in progress")
        answer = self._decide(result, "" if self._results[result] == "yes" else "3D Not Authenticated")
        return {name: value for name, value in answer.items() if name != "amount"}

    def _change(self, kind: str, psp: str, body: Document) -> Document:
        """Received; what becomes of it is told."""
        if psp not in self.payments:
            raise Wrong("167", "Original pspReference required for this operation")
        payment, amount = self.payments[psp], body.get("amount")
        mine = secrets.token_hex(8).upper()
        code = {"captures": "CAPTURE", "refunds": "REFUND", "cancels": "CANCELLATION"}[kind]
        card = CARDS[payment["card"]]
        asked = amount["value"] if amount else 0
        left = payment["amount"]["value"] - payment["captured"]
        why = ""
        if card.refuses == code:
            why = "Operation not allowed by the issuer"
        elif code == "CAPTURE" and (payment["status"] != "authorised" or asked > left):
            why = "Insufficient balance on payment"
        elif code == "REFUND" and asked > payment["captured"] - payment["refunded"]:
            why = "Transaction hasn't been captured, refund not possible"
        elif code == "CANCELLATION" and payment["status"] != "authorised":
            why = "Transaction not authorised"
        if not why and code == "CAPTURE":
            payment["captured"] += asked
            self._book("SentForSettle", psp, asked, body["reference"], mine)
            self._book("Settled", psp, asked, body["reference"], mine)
        elif not why and code == "REFUND":
            payment["refunded"] += asked
            self._book("SentForRefund", psp, asked, body["reference"], mine)
            self._book("Refunded", psp, asked, body["reference"], mine)
        elif not why:
            payment["status"] = "cancelled"
        if not why and amount:
            self.changes[body["reference"]] = {"code": code, "psp": psp, "mine": mine, "amount": amount}
        self._tell(code, mine, body["reference"], amount or payment["amount"], why, psp)
        answer = {"merchantAccount": ACCOUNT, "pspReference": mine, "paymentPspReference": psp, "status": "received"}
        return {**answer, "reference": body["reference"], **({"amount": amount} if amount else {})}

    def _cancel_reference(self, body: Document) -> Document:
        mine = secrets.token_hex(8).upper()
        for psp, payment in self.payments.items():
            if payment["reference"] == body["paymentReference"] and payment["status"] == "authorised":
                payment["status"] = "cancelled"
                self._tell("TECHNICAL_CANCEL", mine, body["paymentReference"], payment["amount"], "", psp)
        answer = {"merchantAccount": ACCOUNT, "pspReference": mine, "paymentReference": body["paymentReference"]}
        return {**answer, "reference": body["reference"], "status": "received"}

    def fail(self, reference: str) -> None:
        """The bank takes back a capture or a refund that was done."""
        change = self.changes.pop(reference)
        code, psp, mine, amount = change["code"], change["psp"], change["mine"], change["amount"]
        booked, total = ("SettledReversed", "captured") if code == "CAPTURE" else ("RefundedReversed", "refunded")
        self.payments[psp][total] -= amount["value"]
        self._book(booked, psp, amount["value"], reference, mine)
        self._tell(f"{code}_FAILED", mine, reference, amount, "", psp, reason="Closed account")

    def charge_back(self, psp: str, value: int) -> None:
        """The bank takes money back."""
        self._book("Chargeback", psp, value, "", secrets.token_hex(8).upper())

    def _book(self, kind: str, psp: str, value: int, reference: str = "", mine: str = "") -> None:
        payment = self.payments[psp]
        self.books.book(Step(kind, psp, payment["reference"], value, payment["amount"]["currency"], reference, mine))

    # What a test wants to know.
    def totals(self) -> tuple[int, int]:
        """Captured and refunded in all, minor units."""
        return sum(one["captured"] for one in self.payments.values()), sum(
            one["refunded"] for one in self.payments.values()
        )

    def held(self, reference: str) -> int:
        """What could still be captured under that reference."""
        mine = [
            one for one in self.payments.values() if one["reference"] == reference and one["status"] == "authorised"
        ]
        return sum(one["amount"]["value"] - one["captured"] for one in mine)

    def webhooks(self) -> list[tuple[dict[str, str], bytes]]:
        """The webhooks since the last time."""
        told, self.items = self.items, []
        return [({}, body_of(one)) for one in told]

    def _tell(
        self, code: str, psp: str, reference: str, amount: Document, why: str, original: str = "", reason: str = ""
    ) -> None:
        item = {
            "eventCode": code, "pspReference": psp, "merchantReference": reference, "merchantAccountCode": ACCOUNT,
            "amount": amount, "success": "false" if why else "true", "reason": why or reason, "paymentMethod": "visa",
            "eventDate": datetime.now(UTC).isoformat(), **({"originalReference": original} if original else {}),
        }  # fmt: skip
        self.items.append(signed(item))


def wrong_in_words(version: int, key: str, body: Document) -> str:
    """What Adyen says of its requests beside the document, or in its descriptions alone."""
    amount, paid = body.get("amount", {"value": 1, "currency": "EUR"}), "paymentMethod" in body
    stores = body.get("storePaymentMethod", False)
    interaction = ("Ecommerce" if stores else "ContAuth", "CardOnFile")
    rules = {
        f"the version is {VERSION}": version == VERSION,
        "a key for idempotency has 1 to 64 characters": 0 < len(key) <= 64,
        "the merchant account is not known": body.get("merchantAccount", ACCOUNT) == ACCOUNT,
        "an amount is a whole number of minor units above zero": type(amount["value"]) is int
        and amount["value"] >= 1 - stores,
        "what stores a card is a payment of nothing": not stores or amount["value"] == 0,
        "a card that is stored is charged as one": not paid
        or (body.get("shopperInteraction"), body.get("recurringProcessingModel")) == interaction,
        "currencies are in capitals": amount["currency"].isupper(),
        "the money is captured by hand": not paid or stores or body.get("additionalData") == {"manualCapture": "true"},
        "a stored card is of a shopper": not paid or bool(body.get("shopperReference")),
        "the shopper comes back over HTTP": not paid or body["returnUrl"].startswith("http"),
    }
    return "; ".join(one for one, kept in rules.items() if not kept)


def signed(item: Document, key: str = HMAC_KEY, sign: Callable[..., Any] = generate_notification_sig) -> Document:
    return {**item, "additionalData": {"hmacSignature": sign(item, key).decode()}}


def body_of(item: Document) -> bytes:
    body: Document = {"live": "false", "notificationItems": [{"NotificationRequestItem": item}]}
    hold_notification(body)
    return json.dumps(body).encode()
