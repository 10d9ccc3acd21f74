"""A vendor's stand-in, held against what the vendor publishes: what is asked of it is answered with 400 when the document doesn't allow it,
and that, like an answer or a webhook of the stand-in's own that it doesn't allow, fails the test in which it happened."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.kernel.mismatch import mismatch
from tests.kernel.openapi import Api, Document
from tests.kernel.published import ADYEN, ADYEN_WEBHOOK, STRIPE, text_of

NO_ANSWER = 504  # is what nobody waits for any more

INTENTS, CHANGES = "/v1/payment_intents", "/payments/{paymentPspReference}"
STRIPE_OPERATIONS = [
    ("GET", "/v1/payment_methods/{payment_method}"),
    *(("POST", f"/v1/payment_methods/{{payment_method}}/{what}") for what in ("attach", "detach")),
    ("POST", "/v1/customers"), ("GET", "/v1/customers/search"), ("DELETE", "/v1/customers/{customer}"), ("POST", INTENTS), ("GET", f"{INTENTS}/search"), ("GET", f"{INTENTS}/{{intent}}"),
    ("POST", f"{INTENTS}/{{intent}}"), *(("POST", f"{INTENTS}/{{intent}}/{what}") for what in ("confirm", "capture", "cancel")),
    ("POST", "/v1/refunds"), ("GET", "/v1/refunds"), ("GET", "/v1/balance_transactions"), ("POST", "/v1/webhook_endpoints"),
]  # fmt: skip
ADYEN_OPERATIONS = [
    ("POST", "/payments"), ("POST", "/payments/details"), ("POST", "/cancels"),
    *(("POST", f"{CHANGES}/{what}") for what in ("captures", "cancels", "refunds")),
    ("GET", "/storedPaymentMethods"), ("DELETE", "/storedPaymentMethods/{storedPaymentMethodId}"),
]  # fmt: skip


class Held:
    """A stand-in's app. Without a document (`api` None) everything goes through, and always what is not `under` a path.

    `refusal`: the vendor's error with these words."""

    def __init__(self, app: ASGIApp, api: Api | None, under: str, refusal: Callable[[str], Document]) -> None:
        self._app, self._api, self._under, self._refusal = app, api, under, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        api = self._api
        if api is None or scope["type"] != "http" or not scope["path"].startswith(self._under):
            await self._app(scope, receive, send)
            return
        method, path, headers = scope["method"], scope["path"], _headers(scope)
        body = await Request(scope, receive).body()
        if why := api.wrong_request(method, path, scope["query_string"].decode(), headers, body):
            mismatch(f"{method} {path}: {why}")
            await JSONResponse(self._refusal(why), 400)(scope, receive, send)
            return
        asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        answer: list[Message] = []

        async def again() -> Message:
            return asked.pop() if asked else await receive()

        async def keep(message: Message) -> None:
            answer.append(message)

        await self._app(scope, again, keep)
        start, *parts = answer
        if start["status"] != NO_ANSWER:
            said = b"".join(one.get("body", b"") for one in parts)
            if why := api.wrong_answer(method, path, start["status"], _headers(start), said):
                mismatch(f"{method} {path} is answered with {start['status']}: {why}")
        for message in answer:
            await send(message)


def _headers(message: Any) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in message["headers"]}


@cache
def stripe_api() -> Api | None:
    document = text_of(STRIPE)
    return None if document is None else Api(orjson.loads(document), STRIPE_OPERATIONS)


@cache
def adyen_api() -> Api | None:
    text = text_of(ADYEN)
    if text is None:
        return None
    document = orjson.loads(text)
    return Api(document, ADYEN_OPERATIONS, base=urlsplit(document["servers"][0]["url"]).path)  # /v71


def hold_event(event: Document) -> None:
    """A webhook of Stripe's: the event, its type, and what it is about."""
    api = stripe_api()
    if api is None:
        return
    endpoint = api.schema_of("POST", "/v1/webhook_endpoints")
    if event["type"] not in endpoint["properties"]["enabled_events"]["items"]["enum"]:
        mismatch(f"Stripe has no event {event['type']}")
    about = event["data"]["object"]
    for why in filter(None, (api.wrong("event", event), api.wrong(about["object"], about))):
        mismatch(f"event {event['type']}: {why}")


def hold_notification(body: Document) -> None:
    """A webhook of Adyen's: the items in it."""
    types, api = text_of(ADYEN_WEBHOOK), adyen_api()
    if types is None or api is None:
        return
    for told in (one["NotificationRequestItem"] for one in body["notificationItems"]):
        if why := api.wrong(item_schema(types.decode()), told):
            mismatch(f"webhook {told.get('eventCode')}: {why}")


@cache
def item_schema(types: str) -> Document:
    """The JSON Schema of the item that Adyen's library declares in TypeScript, out of Adyen's own document of it."""
    words = {
        name: {"type": "string", "enum": re.findall(r'= "([^"]+)"', body)}
        for name, body in re.findall(r"enum (\w+) \{(.*?)\}", types, re.DOTALL)
    }
    kinds: dict[str, Document] = {
        "string": {"type": "string"},
        "Amount": {"$ref": "#/components/schemas/Amount"},
        **{f"NotificationRequestItem.{name}": of for name, of in words.items()},
    }
    properties, required = {}, []
    for name, optional, kind in re.findall(r"^\s+'(\w+)'(\??): (\{[^}]*\}|[^;]+);", types, re.MULTILINE):
        several = re.fullmatch(r"Array<(.+)>", kind)
        if kind.startswith("{"):
            properties[name] = {"type": "object", "additionalProperties": {"type": "string"}}
        else:
            properties[name] = {"type": "array", "items": kinds[several[1]]} if several else kinds[kind]
        if not optional:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
