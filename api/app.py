"""All services behind one port: every module of `api/` with a `router`, the schema registry, the documentation at /docs."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from fastapi import APIRouter

import api
from api.kernel import app_of
from schemas.registry import router as registry

OURS = ("kernel", "app")


def routers() -> list[APIRouter]:
    """The routers of the services, by name. A module without one is an error: it would be a service that nobody reaches."""
    names = sorted(module.name for module in pkgutil.iter_modules(api.__path__) if module.name not in OURS)
    found = []
    for name in names:
        router = getattr(import_module(f"api.{name}"), "router", None)
        if not isinstance(router, APIRouter):
            raise TypeError(f"api/{name}.py has no router")
        found.append(router)
    return found


app = app_of(*routers(), registry)
