"""An app: services behind one port. Each domain module has one of its own, and `api.app` has them all."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

import infra.settings
from api.kernel import docs, health
from api.kernel.edge import Edge
from api.kernel.host import Host, opened
from api.kernel.openapi import document
from infra import logs
from infra.settings import Settings

VERSION = "0.1.0"
GC_THRESHOLD = (10_000, 20, 20)  # a request makes some hundred objects, nearly none in a cycle
ABOUT = """Commands are stored before they are answered: the `position` of a receipt, sent back as `?after=`, reads one's own
writes. Send an `Idempotency-Key` with each command, and repeat it with the same key when an answer is lost; what moves money and
has no id of its own is refused without one."""


class App(FastAPI):
    """FastAPI behind our own edge: its router, its OpenAPI and its documentation pages, none of its middleware."""

    stores: Host | None = None

    def __init__(self, routers: tuple[APIRouter, ...], settings: Settings | None) -> None:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            chosen = settings or infra.settings.settings()
            logs.configure(chosen.log_level)
            async with opened(chosen) as self.stores:
                # What is there by now stays: collecting garbage need not walk it again and again.
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GC_THRESHOLD)
                yield
            self.stores = None
            logs.flush()
            gc.unfreeze()

        super().__init__(
            title="Titan Commerce", version=VERSION, description=ABOUT, lifespan=lifespan, redirect_slashes=False,
            docs_url=None, redoc_url=None,
        )  # fmt: skip
        routers = (*routers, health.router, docs.router)
        for router in routers:
            self.include_router(router)
        self._routes: list[Any] = [route for router in routers for route in router.routes]
        self._edge = Edge(self, self._routes)

    def build_middleware_stack(self) -> ASGIApp:
        """Errors go through to the edge, which answers them all."""
        return AsyncExitStackMiddleware(self.router)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = document(self, self._routes)
        return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert self.stores is not None, "the app's lifespan has not begun"
            await self._edge(self.stores, scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self.router(scope, receive, send)


def app_of(*routers: APIRouter, settings: Settings | None = None) -> App:
    """An app of these services. Its stores are opened when it starts, from `settings` or else from the environment's."""
    return App(routers, settings)
