"""The words of a service, as `api.kernel` gives them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from api.kernel.app import app_of
from api.kernel.auth import Caller, anyone, caller
from api.kernel.commands import Commands as Door
from api.kernel.commands import CommandsPiece, Receipt
from api.kernel.problems import Problem
from api.kernel.reads import rendered, service
from api.kernel.stores import ClickHouse, Raw, Redis, Store, Vault, Views
from api.kernel.types import Amount, Body, Country, Currency, Moment, Name, Price, Quantity, Sku, Text

Commands = Annotated[Door, Depends(CommandsPiece())]
Keyed = Annotated[Door, Depends(CommandsPiece(keyed=True))]

__all__ = [
    "Amount",
    "Body",
    "Caller",
    "ClickHouse",
    "Commands",
    "Country",
    "Currency",
    "Keyed",
    "Moment",
    "Name",
    "Price",
    "Problem",
    "Quantity",
    "Raw",
    "Receipt",
    "Redis",
    "Sku",
    "Store",
    "Text",
    "Vault",
    "Views",
    "anyone",
    "app_of",
    "caller",
    "rendered",
    "service",
]
