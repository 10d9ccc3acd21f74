"""Pieces: what a route gets from the kernel by naming it in its signature. Taken without a detour through FastAPI's solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from starlette.requests import Request

if TYPE_CHECKING:
    from api.kernel.call import Call

T_co = TypeVar("T_co", covariant=True)


class Piece(Generic[T_co]):
    """A dependency that needs the request at most. Subclasses say what `take` gives.

    `vouches`: who sends it is known by what is in it, a signature say, so a route with this piece costs no token of an address by itself.
    """

    vouches = False

    def take(self, call: Call) -> T_co:
        """The value for this request; raises a problem."""
        raise NotImplementedError

    async def __call__(self, request: Request) -> T_co:
        """The same inside a dependency of a route's own, which FastAPI solves."""
        return self.take(request.scope["titan"])
