"""Accounts over HTTP: registration, signing in and out, and who may do what.

Nothing here says whether an address has an account: known and unknown ones get the same answers after the same work, and what there is
to say goes to the address by mail.
"""

from __future__ import annotations

from fastapi import APIRouter

from api.auth import accounts, answering, clients, external, keys, login, oauth, registration, second
from api.kernel import app_of
from api.kernel.route import Route

router = APIRouter(route_class=Route)
for part in (registration, answering, login, second, external, keys, accounts, clients, oauth):
    router.routes.extend(part.router.routes)  # not `include_router`: it would hide them from the kernel

app = app_of(router)
