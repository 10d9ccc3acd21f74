"""Fields of requests: each with its unit, its limits and an example, refused at the edge when it is out of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from aggregates.kernel.currency import DIGITS

AMOUNT_MAX = 10**12  # minor units: above any real transfer, below JSON's exact 2**53 and Avro's long
INTEGER_MAX = 2**53 - 1  # exact in every JSON reader
QUANTITY_MAX = 100_000
NAME_CHARS_MAX = 200
TEXT_CHARS_MAX = 10_000
ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*$"  # no control characters
PROSE = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$"  # line breaks and tabs are fine

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _currency(code: str) -> str:
    if code not in DIGITS:
        raise ValueError("not a currency of ISO 4217, as EUR")
    return code


def _only_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("a string is needed here")
    return value


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 2.0 is the integer 2."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= INTEGER_MAX else value


def _rfc3339(value: Any) -> Any:
    if not (isinstance(value, str) and _TIME.fullmatch(value)):
        raise ValueError("a time is needed here, as 2026-11-01T00:00:00Z")
    return value


def _iso_date(value: Any) -> Any:
    if not (isinstance(value, str) and _DATE.fullmatch(value)):
        raise ValueError("a date is needed here, as 2026-11-01")
    return value


def _utc(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("a time needs its zone, as in 2026-11-01T00:00:00Z")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time between the years 1 and 9999") from None


Amount = Annotated[
    int, Field(strict=True, ge=1, le=AMOUNT_MAX, description="Minor units of the currency.", examples=[1999])
]
Price = Annotated[
    int, Field(strict=True, ge=0, le=AMOUNT_MAX, description="Minor units of the currency; 0 is free.", examples=[1999])
]
Quantity = Annotated[int, Field(strict=True, ge=1, le=QUANTITY_MAX, description="Pieces.", examples=[2])]
Currency = Annotated[
    str,
    AfterValidator(_currency),
    WithJsonSchema({"type": "string", "enum": sorted(DIGITS), "description": "ISO 4217 code.", "examples": ["EUR"]}),
]
Country = Annotated[str, Field(pattern="^[A-Z]{2}$", description="ISO 3166-1 alpha-2 code.", examples=["DE"])]
Sku = Annotated[
    str,
    Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Stock keeping unit.", examples=["MUG-RED-2"]),
]
Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=NAME_CHARS_MAX,
        pattern=ONE_LINE,
        description="One line of text.",
        examples=["Red mug"],
    ),
]
Text = Annotated[
    str,
    Field(max_length=TEXT_CHARS_MAX, pattern=r"^[^\x00]*$", description="Free text.", examples=["A mug, red inside."]),
]
Moment = Annotated[
    datetime,
    BeforeValidator(_rfc3339),
    AfterValidator(_utc),
    Field(description="RFC 3339 time with its zone.", examples=["2026-11-01T00:00:00Z"]),
]


WRITTEN = {
    "datetime": _rfc3339, "date": _iso_date, "time": _only_text, "timedelta": _only_text, "uuid": _only_text, "decimal": _only_text,
}  # fmt: skip


def _strict(node: Any) -> Any:
    """A core schema in which "1" is no number and 5 is no time, while a UUID is still read from its text; with limits."""
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if isinstance(node, tuple):
        return tuple(_strict(one) for one in node)
    if not isinstance(node, dict):
        return node
    inner = {
        key: value if key in ("metadata", "serialization", "function") else _strict(value)
        for key, value in node.items()
    }
    kind = inner.get("type")
    if kind == "int":
        inner["strict"] = True
        inner.update({} if {"lt", "le"} & inner.keys() else {"le": INTEGER_MAX})
        inner.update({} if {"gt", "ge"} & inner.keys() else {"ge": -INTEGER_MAX})
        return core_schema.no_info_before_validator_function(_whole, inner)
    if kind == "bool":
        inner["strict"] = True
    elif kind == "float":
        inner["strict"], inner["allow_inf_nan"] = True, False
    elif kind == "str":
        inner.setdefault("max_length", TEXT_CHARS_MAX)
        inner.setdefault("pattern", r"^[^\x00]*$")  # Postgres stores no NUL
    elif kind in WRITTEN:
        return core_schema.no_info_before_validator_function(WRITTEN[kind], inner)
    return inner


class Body(BaseModel):
    """The body of a request. Unknown fields are refused; JSON's types are taken as they are, never converted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _strict(handler(source))
        return schema
