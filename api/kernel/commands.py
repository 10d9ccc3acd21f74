"""Commands over HTTP: one request's identity, command id and expected version, carried into the event store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import Field

from aggregates.kernel import Aggregate, NotFound, Origin, Reused, domains
from aggregates.kernel import Commands as Door
from aggregates.kernel import Receipt as Stored
from aggregates.kernel.clock import new_id
from aggregates.kernel.commands import owner_of
from api.kernel.call import Call
from api.kernel.piece import Piece
from api.kernel.problems import Problem, retry_after
from schemas.values import value

A = TypeVar("A", bound=Aggregate)
P = ParamSpec("P")


@value
class Receipt:
    """A command that is stored for good."""

    id: Annotated[UUID, Field(description="The aggregate.", examples=["0191d1f0-9d3b-7c3e-8f00-5c2a7d1f4b6a"])]
    version: Annotated[int, Field(description="Its version now; for If-Match.", ge=0, examples=[3])]
    position: Annotated[
        str,
        Field(
            description="Send it back as `?after=` to read what this command wrote.",
            pattern="^([a-z]+:[0-9]{1,18})?$",
            examples=["order:1042"],
        ),
    ]

    def json(self) -> bytes:
        """The document, written by hand: this is on the path of every command."""
        return f'{{"id":"{self.id}","version":{self.version},"position":"{self.position}"}}'.encode()


@dataclass(frozen=True, slots=True)
class Owned:
    """Whose an aggregate is: `attribute` holds the owner's id; who may `scope` acts on everybody's."""

    plural: str
    attribute: str | None
    scope: str


OWNED: dict[type[Aggregate], Owned] = {}
"""Filled by `service`."""


class Commands:
    """The door of one request. Each method stores one command and answers with its `Receipt`.

    Raises what `aggregates.kernel.Commands` raises, and `NotFound` for an aggregate that is somebody else's.
    """

    def __init__(self, call: Call) -> None:
        self._call, self._guards, self._speaks = call, True, True
        caller = call.caller
        key = call.key()
        if key is not None:
            whose = str(caller.id) if caller else (call.scope["client"] or ("",))[0]
            call.command = uuid5(NAMESPACE_URL, f"{whose}\n{call.scope['method']} {call.route}\n{key}")
            if call.command in call.host.running:
                command, call.command = call.command, None  # it is the other request's to end
                raise Problem(
                    "running",
                    f"the first request with this key is not answered yet ({command})",
                    headers=retry_after(1),
                )
            call.host.running.add(call.command)
        self._origin = Origin(
            actor=caller.actor if caller else "anonymous",
            correlation=call.correlation,
            command=call.command,
            fingerprint=call.fingerprint() if key is not None else b"",
            expected=call.expected() if "{id}" in call.route else None,
        )

    def _door(self) -> Door:
        """Each command of a request has an id of its own, the same one when the request comes again."""
        call, origin = self._call, self._origin
        if call.commands:
            command = origin.command and uuid5(origin.command, str(call.commands))
            origin = replace(origin, command=command, expected=None)
        call.commands += 1
        return call.host.store.commands(origin)

    def under(self, command: UUID, actor: str) -> Commands:
        """The same door with a command id and an actor of the route's own: a webhook's, from its source's id."""
        self._origin = replace(self._origin, command=command, actor=actor, fingerprint=b"")
        return self

    def openly(self) -> Commands:
        """The same door to others' aggregates too: the command says itself who may give it."""
        self._guards = False
        return self

    def quietly(self) -> Commands:
        """The same door for many commands of one request: the answer's headers tell of none of them."""
        self._speaks = False
        return self

    @property
    def reference(self) -> UUID:
        """An id for what the next command makes: the same one when a request comes again with its Idempotency-Key."""
        command = self._origin.command
        return new_id() if command is None else uuid5(command, f"reference {self._call.commands}")

    def expecting(self, cls: type[A], id: UUID) -> AbstractContextManager[A | None]:
        """Load an aggregate while the route looks elsewhere: the command given within need not wait for that.

        It gives the aggregate if it is here already, perhaps out of date: only what never changes in it may be looked at.
        """
        return self._call.host.store.commands(self._origin).expecting(cls, id)

    async def open(self, cls: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Make a new aggregate."""
        return self._made(cls, await self._door().open(cls, *args, **kwargs))

    async def open_as(self, id: UUID, cls: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> Receipt:
        """Make a new aggregate under an id of the caller's."""
        return self._made(cls, await self._door().open_as(id, cls, *args, **kwargs))

    async def tell(
        self, id: UUID, method: Callable[Concatenate[A, P], None], *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Give an aggregate a command: `tell(id, Wallet.hold, escrow, 60)`."""
        return self._told(await self._door().tell(id, self._guarded(method), *args, **kwargs))

    async def tell_with(
        self, id: UUID, other: UUID, method: Callable[Concatenate[A, A, P], None], *args: P.args, **kwargs: P.kwargs
    ) -> Receipt:
        """Give an aggregate a command that changes another one too, both or neither. The other may be anybody's."""
        return self._told(await self._door().tell_with(id, other, self._guarded(method), *args, **kwargs))

    async def tell_all(self, calls: Sequence[tuple[UUID, Callable[..., None], tuple[Any, ...]]]) -> Receipt:
        """Give several aggregates of one domain a command each, all or nothing."""
        return self._told(
            await self._door().tell_all([(id, self._guarded(method), args) for id, method, args in calls])
        )

    def _guarded(self, method: Callable[Concatenate[A, P], None]) -> Callable[Concatenate[A, P], None]:
        """The method, refusing an aggregate of somebody else's as if it weren't there, on the version that it decides on."""
        caller = self._call.caller
        owned = OWNED.get(owner_of(method))
        if not self._guards or owned is None or owned.attribute is None or caller is None or caller.may(owned.scope):
            return method
        attribute, mine = owned.attribute, caller.id

        @wraps(method)
        def guarded(aggregate: A, /, *args: P.args, **kwargs: P.kwargs) -> None:
            if getattr(aggregate, attribute) != mine:
                raise NotFound(f"there is no {type(aggregate).__name__.lower()} {aggregate.id}")
            method(aggregate, *args, **kwargs)

        return guarded

    def _made(self, cls: Any, stored: Stored) -> Receipt:
        owned = OWNED.get(getattr(cls, "__self__", cls))  # a class method makes one of its class
        if owned and self._speaks:
            self._call.said.append((b"location", f"/{owned.plural}/{stored.id}".encode()))
        return self._told(stored)

    def _told(self, stored: Stored) -> Receipt:
        said = self._call.said if self._speaks else []
        said.append((b"etag", b'"%d"' % stored.version))
        if stored.replayed:
            said.append((b"idempotency-replayed", b"true"))
        return Receipt(stored.id, stored.version, stored.position)


async def stored_before(call: Call, domain: str) -> Receipt | None:
    """What a request's first command answered when it was stored by an earlier request of the same key; else None.

    Raises `Reused` when that one asked for something else.
    """
    if call.command is None or call.commands or domain not in domains():
        return None
    stored = await call.host.store.answer(domain, call.command)
    if stored is None:
        return None
    if not stored.may_be(call.fingerprint()):
        raise Reused("this Idempotency-Key was used before, for another request")
    position = f"{domain}:{stored.notification_id}" if stored.notification_id else ""
    if call.scope["method"] == "POST" and "{" not in call.route:
        call.said.append((b"location", f"{call.route}/{stored.originator_id}".encode()))
    call.said += [(b"etag", b'"%d"' % stored.originator_version), (b"idempotency-replayed", b"true")]
    return Receipt(stored.originator_id, stored.originator_version, position)


class CommandsPiece(Piece[Commands]):
    """Gives a route its `Commands`.

    `keyed`: a request without an Idempotency-Key is refused. That is for what moves money and has no id of its own in what is asked:
    sent again since its answer was lost, it would be done twice.
    """

    def __init__(self, keyed: bool = False) -> None:
        self.keyed = keyed

    def take(self, call: Call) -> Commands:
        if self.keyed:
            call.needs_key()
        return Commands(call)
