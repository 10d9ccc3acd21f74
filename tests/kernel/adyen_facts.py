"""What Adyen's Checkout API, version 71, takes and answers of the requests that we send, as JSON Schemas written by us. The facts
(names, types, what is required, words that are allowed) are those of Adyen's published OpenAPI document, docs.adyen.com/api-explorer;
a test compares the two where the document can be had. What is not here we neither send nor read: it is refused as unknown."""

from __future__ import annotations

from typing import Any

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
