"""Schema registries over HTTP, for tests: an app served on a free port, and somebody else's registry."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app on a free port, by a real server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def company() -> FastAPI:
    """A registry of somebody else: it gives ids of its own, from 1000 up, and refuses the subjects in `state.refused`."""
    app, ids = FastAPI(), dict[tuple[str, str], int]()
    app.state.refused = set[str]()

    @app.post("/subjects/{subject}/versions")
    async def register(subject: str, request: Request) -> Any:
        asked = await request.json()
        if subject in app.state.refused:
            return JSONResponse({"error_code": 409, "message": "incompatible with an earlier schema"}, 409)
        return {"id": ids.setdefault((subject, asked["schema"]), 1000 + len(ids))}

    return app
