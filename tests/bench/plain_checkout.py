"""The baseline of `checkout`: a hand-written endpoint that buys a cart in one SQL transaction, and answers when it is paid.

Paid from a wallet that is all. A card is authorised before and captured after it at the same gateway, and the order then marked paid.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
from fastapi import FastAPI, HTTPException
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from streams.gateways.settings import GatewaySettings

TABLES = """
CREATE TABLE plain_products (sku text PRIMARY KEY, price bigint NOT NULL, on_hand bigint NOT NULL CHECK (on_hand >= 0));
CREATE TABLE plain_carts (id uuid PRIMARY KEY, customer uuid NOT NULL, status text NOT NULL);
CREATE TABLE plain_cart_lines (cart uuid NOT NULL, sku text NOT NULL, quantity bigint NOT NULL, price bigint NOT NULL, PRIMARY KEY (cart, sku));
CREATE TABLE plain_wallets (customer uuid PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
CREATE TABLE plain_checkouts (
    id uuid PRIMARY KEY, customer uuid NOT NULL, cart uuid NOT NULL UNIQUE, lines jsonb NOT NULL, address jsonb NOT NULL,
    total bigint NOT NULL, status text NOT NULL, placed_at timestamptz NOT NULL DEFAULT now()
);
"""
LINES = """
SELECT l.sku, l.quantity, l.price, p.price FROM plain_cart_lines l JOIN plain_products p USING (sku) WHERE l.cart = %s ORDER BY l.sku
"""
SOLD = """
UPDATE plain_products p SET on_hand = on_hand - l.quantity FROM plain_cart_lines l WHERE l.cart = %s AND l.sku = p.sku
"""
SHIPPING = 490


class Address(BaseModel):
    recipient: str
    street: str
    city: str
    postcode: str
    country: str


class Buying(BaseModel):
    customer: UUID
    cart: UUID
    method: str | None
    address: Address


pool: AsyncConnectionPool[AsyncConnection[Any]]
gateway: httpx.AsyncClient


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    global pool, gateway
    settings = GatewaySettings()
    headers = {"authorization": f"Bearer {settings.test_key('api').decode()}"}
    async with (
        AsyncConnectionPool(os.environ["PLAIN_DSN"], min_size=16, max_size=16, open=False) as pool,
        httpx.AsyncClient(base_url=settings.test_gateway_url, headers=headers, trust_env=False) as gateway,
    ):
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/checkouts", status_code=201)
async def buy(body: Buying) -> dict[str, str]:
    id = uuid4()
    if body.method is not None:
        async with pool.connection() as connection:
            lines = await (await connection.execute(LINES, (body.cart,))).fetchall()
        amount = SHIPPING + sum(quantity * price for _, quantity, price, _ in lines)
        await _asked(f"/payments/{id}", {"amount": amount, "currency": "EUR", "token": body.method}, "authorised")
    async with pool.connection() as connection:
        total = await _bought(connection, id, body)
    if body.method is not None:
        await _asked(f"/payments/{id}/captures/{uuid4()}", {"amount": total}, "captured")
        async with pool.connection() as connection:
            await connection.execute("UPDATE plain_checkouts SET status = 'paid' WHERE id = %s", (id,))
    return {"id": str(id)}


async def _bought(connection: AsyncConnection[Any], id: UUID, body: Buying) -> int:
    """The one transaction."""
    cart = await connection.execute(
        "UPDATE plain_carts SET status = 'checked out' WHERE (id, customer, status) = (%s, %s, 'open')",
        (body.cart, body.customer),
    )
    if cart.rowcount != 1:
        raise HTTPException(409, "there is no such cart")
    lines = await (await connection.execute(LINES, (body.cart,))).fetchall()
    if any(seen != price for _, _, seen, price in lines):
        raise HTTPException(409, "a price has changed")
    await connection.execute(SOLD, (body.cart,))
    total = SHIPPING + sum(quantity * price for _, quantity, price, _ in lines)
    if body.method is None:
        await connection.execute(
            "UPDATE plain_wallets SET balance = balance - %s WHERE customer = %s", (total, body.customer)
        )
    status = "paid" if body.method is None else "placed"
    await connection.execute(
        "INSERT INTO plain_checkouts (id, customer, cart, lines, address, total, status) VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (
            id,
            body.customer,
            body.cart,
            Jsonb([line[:3] for line in lines]),
            Jsonb(body.address.model_dump()),
            total,
            status,
        ),
    )
    return int(total)


async def _asked(path: str, body: dict[str, Any], status: str) -> None:
    answer = await gateway.put(path, json=body)
    if answer.status_code != 200 or answer.json()["status"] != status:
        raise HTTPException(402, answer.text[:200])
