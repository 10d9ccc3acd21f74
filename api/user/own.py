"""Whose a person's data is: the person's own, and of who may see everybody's."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from aggregates.kernel import NotFound, Store
from aggregates.user import User
from api.kernel import Caller, caller

Reader = Annotated[Caller, caller("users:read")]
Owner = Annotated[Caller, caller("users:write")]


async def known(store: Store, by: Caller, id: UUID) -> User:
    """The user, if the caller may know of it. Asked before anything is sealed: a key is made for nobody else."""
    if id != by.id and not by.may("users:any"):
        raise NotFound(f"there is no user {id}")
    return await store.load(User, id)
