"""What Adyen's Checkout API, version 71, takes and answers of the requests that we send, as JSON Schemas written by us. The facts
(names, types, what is required, words that are allowed) are those of Adyen's published OpenAPI document, docs.adyen.com/api-explorer;
where that can be had, the two are compared, and everything is held against it as well. What is not here we neither send nor read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs

VERSION = 71
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}


def words(*allowed: str) -> Schema:
    return {"type": "string", "enum": list(allowed)}


def record(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


AMOUNT = record({"currency": {"type": "string", "minLength": 3, "maxLength": 3}, "value": {"type": "integer"}})
CARD = record(
    {},
    {
        "type": words("bcmc", "scheme", "networkToken", "giftcard", "card"),
        "storedPaymentMethodId": {"type": "string", "maxLength": 64},
        **{
            f"encrypted{name}": {"type": "string", "maxLength": 15_000}
            for name in ("CardNumber", "ExpiryMonth", "ExpiryYear", "SecurityCode")
        },
    },
)
REDIRECT = record({"type": words("redirect")}, {"method": TEXT, "paymentMethodType": TEXT, "url": TEXT})
RESULT = words(
    "AuthenticationFinished", "AuthenticationNotRequired", "Authorised", "Cancelled", "ChallengeShopper", "Error",
    "IdentifyShopper", "PartiallyAuthorised", "Pending", "PresentToShopper", "Received", "RedirectShopper", "Refused", "Success",
)  # fmt: skip
RECEIVED = words("received")
ERROR = record(
    {}, {"status": {"type": "integer"}, "errorCode": TEXT, "errorType": TEXT, "message": TEXT, "pspReference": TEXT}
)
PAID: dict[str, Schema] = {
    "additionalData": {"type": "object", "additionalProperties": TEXT},
    "resultCode": RESULT, "pspReference": TEXT, "merchantReference": TEXT, "refusalReason": TEXT, "refusalReasonCode": TEXT,
}  # fmt: skip
CHANGED: dict[str, Schema] = {
    "merchantAccount": TEXT,
    "pspReference": TEXT,
    "paymentPspReference": TEXT,
    "status": RECEIVED,
}

CAPTURES, CANCELS, REFUNDS = (f"/payments/{{paymentPspReference}}/{one}" for one in ("captures", "cancels", "refunds"))
REQUESTS: dict[str, Schema] = {
    "/payments": record(
        {"merchantAccount": TEXT, "reference": TEXT, "amount": AMOUNT, "paymentMethod": CARD, "returnUrl": TEXT},
        {
            "shopperReference": {"type": "string", "minLength": 3, "maxLength": 256},
            "shopperInteraction": words("Ecommerce", "ContAuth", "Moto", "POS"),
            "recurringProcessingModel": words("CardOnFile", "Subscription", "UnscheduledCardOnFile"),
            "redirectToIssuerMethod": TEXT,
            "storePaymentMethod": {"type": "boolean"},
            "additionalData": {"type": "object", "additionalProperties": TEXT},
        },
    ),
    "/payments/details": record({"details": record({}, {"redirectResult": {"type": "string", "maxLength": 20000}})}),
    CAPTURES: record({"merchantAccount": TEXT, "amount": AMOUNT}, {"reference": TEXT}),
    REFUNDS: record({"merchantAccount": TEXT, "amount": AMOUNT}, {"reference": TEXT}),
    CANCELS: record({"merchantAccount": TEXT}, {"reference": TEXT}),
    "/cancels": record({"merchantAccount": TEXT, "paymentReference": TEXT}, {"reference": TEXT}),
}
ANSWERS: dict[tuple[str, int], Schema] = {
    ("/payments", 200): record({}, {**PAID, "action": REDIRECT, "amount": AMOUNT}),
    ("/payments/details", 200): record({}, PAID),
    (CAPTURES, 201): record({**CHANGED, "amount": AMOUNT}, {"reference": TEXT}),
    (REFUNDS, 201): record({**CHANGED, "amount": AMOUNT}, {"reference": TEXT}),
    (CANCELS, 201): record(CHANGED, {"reference": TEXT}),
    ("/cancels", 201): record(
        {"merchantAccount": TEXT, "pspReference": TEXT, "paymentReference": TEXT, "status": RECEIVED},
        {"reference": TEXT},
    ),
    **{(path, status): ERROR for path in REQUESTS for status in (400, 401, 403, 422, 500)},
}


def wrong_request(path: str, body: Schema) -> str:
    """What is wrong with a POST's body; empty when nothing is."""
    return _wrong(REQUESTS[path], body) if path in REQUESTS else f"there is no POST {path}"


def wrong_answer(path: str, status: int, body: Schema) -> str:
    """What is wrong with the answer to a POST."""
    schema = ANSWERS.get((path, status))
    return f"POST {path} never answers {status}" if schema is None else _wrong(schema, body)


def _wrong(schema: Schema, body: Schema) -> str:
    errors = jsonschema_rs.Draft202012Validator(schema).iter_errors(body)
    return "; ".join(f"{'.'.join(map(str, one.instance_path))}: {one.message[:200]}" for one in errors)


def disagreements(document: Schema) -> Iterator[str]:
    """Where our facts are not the document's."""
    for path, schema in REQUESTS.items():
        asked = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        yield from _differs(document, path, schema, asked)
    for (path, status), schema in ANSWERS.items():
        answer = document["paths"][path]["post"]["responses"][str(status)]["content"]["application/json"]["schema"]
        yield from _differs(document, f"{path} {status}", schema, answer)


def _differs(document: Schema, where: str, ours: Schema, theirs: Schema) -> Iterator[str]:
    """`theirs` may allow one of many forms: one that agrees is enough."""
    forms = [_resolved(document, one) for one in theirs.get("oneOf", [theirs])]
    found = [list(_form_differs(document, where, ours, one)) for one in forms]
    yield from min(found, key=len)


def _form_differs(document: Schema, where: str, ours: Schema, theirs: Schema) -> Iterator[str]:
    for word in ("type", "enum", "minLength", "maxLength"):
        mine, other = ours.get(word), theirs.get(word)
        if (sorted(mine) if word == "enum" and mine else mine) != (
            sorted(other) if word == "enum" and other else other
        ):
            yield f"{where}: {word} is {other}, not {mine}"
    if "properties" not in ours:
        return
    if set(ours["required"]) != set(theirs.get("required", ())):
        yield f"{where}: required is {theirs.get('required')}, not {ours['required']}"
    for name, mine in ours["properties"].items():
        if name not in theirs.get("properties", {}):
            yield f"{where}: there is no {name}"
        else:
            yield from _differs(document, f"{where} {name}", mine, theirs["properties"][name])


def _resolved(document: Schema, schema: Schema) -> Schema:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Schema = document["components"]["schemas"][name] if name else schema
    return found
