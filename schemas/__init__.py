"""Titan's events as Avro: the schemas in `avro/`, their history, and the codec. Imports nothing of the other packages."""

from __future__ import annotations

from schemas.codec import Binding, bind, decode, define, leading, today
from schemas.errors import HistoryBroken, Invalid, SchemaError, SchemaMismatch, Unlocked, Unreadable
from schemas.types import Address, Money, Sealed

__all__ = [
    "Address",
    "Binding",
    "HistoryBroken",
    "Invalid",
    "Money",
    "SchemaError",
    "SchemaMismatch",
    "Sealed",
    "Unlocked",
    "Unreadable",
    "bind",
    "decode",
    "define",
    "leading",
    "today",
]
