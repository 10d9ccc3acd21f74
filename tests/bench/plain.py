"""The baseline of `commands`: a hand-written endpoint that INSERTs the same order as one row and commits it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from fastapi import FastAPI
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, Field

TABLE = """
CREATE TABLE IF NOT EXISTS plain_orders (
    id uuid PRIMARY KEY, customer uuid NOT NULL, currency text NOT NULL, lines jsonb NOT NULL, shipping bigint NOT NULL,
    total bigint NOT NULL, address jsonb NOT NULL, placed_at timestamptz NOT NULL
)
"""
INSERT = """
INSERT INTO plain_orders (id, customer, currency, lines, shipping, total, address, placed_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""


class Line(BaseModel):
    sku: str = Field(max_length=64)
    product: UUID
    title: str = Field(max_length=200)
    quantity: int = Field(ge=1)
    unit_price: int = Field(ge=0)
    tax_bp: int = Field(ge=0)


class Address(BaseModel):
    recipient: str
    street: str
    city: str
    postcode: str
    country: str = Field(min_length=2, max_length=2)


class Order(BaseModel):
    customer: UUID
    currency: str = Field(min_length=3, max_length=3)
    lines: list[Line] = Field(min_length=1)
    shipping: int = Field(ge=0)
    address: Address


pool: AsyncConnectionPool[AsyncConnection[Any]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    global pool
    async with AsyncConnectionPool(os.environ["PLAIN_DSN"], min_size=16, max_size=16, open=False) as pool:
        async with pool.connection() as connection:
            await connection.execute(TABLE)
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
async def place(order: Order) -> dict[str, str]:
    id = uuid4()
    total = order.shipping + sum(line.quantity * line.unit_price for line in order.lines)
    row = (
        id,
        order.customer,
        order.currency,
        json.dumps([line.model_dump(mode="json") for line in order.lines]),
        order.shipping,
        total,
        order.address.model_dump_json(),
        datetime.now(UTC),
    )
    async with pool.connection() as connection:
        await connection.execute(INSERT, row)
    return {"id": str(id)}
