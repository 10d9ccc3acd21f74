"""Aggregates and their events: `eventsourcing`'s, with module-level event classes bound to their Avro records.

An event class is checked against `schemas/avro/<domain>.avsc` when its module is imported, and is known in the store and
on the wire as `<domain>.<Name>`, never by its module path, so files can move.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_type_hints
from uuid import UUID

from eventsourcing import domain as library
from eventsourcing.utils import register_topic

import schemas
from aggregates.kernel import clock
from schemas.values import init_of, value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

event = library.event

ENVELOPE = frozenset({"originator_id", "originator_version", "originator_topic", "timestamp"})
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNREAD = " body"  # stands in the __dict__ of an event until its fields are asked for


@value
class Take:
    """A key that only one aggregate of the domain may hold, taken in the commit of the event that claims it."""

    scope: str
    key: str


@value
class Free:
    """Gives a taken key back, in the commit of the event."""

    scope: str
    key: str


@value
class Timer:
    """A command due at a time: `call(*args)` on the aggregate of the event. The same `key` again replaces it.

    `args` are JSON values (str, int, bool, None). A parameter named `now` of `call` is filled when the timer fires.
    """

    key: str
    due: datetime
    call: Callable[..., None]
    args: tuple[str | int | bool | None, ...] = ()


@value
class Cancel:
    """Ends the timer of that key; none there is fine."""

    key: str


def domain_of(module: str) -> str | None:
    """`aggregates.order` → `order`; elsewhere (a test's toy domain) the module's `DOMAIN`; None for the kernel."""
    parts = module.split(".")
    if parts[0] == "aggregates" and len(parts) > 1:
        return None if parts[1] == "kernel" else parts[1]
    return cast("str | None", getattr(sys.modules.get(module), "DOMAIN", None))


class EventMeta(library.MetaDomainEvent):
    """Binds each module-level event class to its record in the domain's .avsc."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> EventMeta:
        cls = cast("EventMeta", super().__new__(mcs, name, bases, namespace))
        domain = domain_of(namespace["__module__"])
        if domain is None or "." in namespace.get("__qualname__", name) or name.startswith("_"):
            return cls  # the kernel's own, the library's inner classes, and what some events of a domain share
        names = {field.name for field in fields(cls)} - ENVELOPE  # type: ignore[arg-type]
        own = {name: hint for name, hint in get_type_hints(cls).items() if name in names}
        cls.domain, cls.type = domain, f"{domain}.{name}"
        cls.binding = schemas.bind(domain, name, own)
        register_topic(cls.type, cls)
        cls.__init__ = init_of(cls)  # type: ignore[misc]
        EVENTS[cls.type] = cast("type[Event]", cls)
        RENAMED.pop(cls.type, None)
        RENAMED.update((f"{domain}.{old}", cls.type) for old in cls.binding.renamed)
        cls.TOPIC = cls.type
        return cls

    domain: str
    type: str
    binding: schemas.Binding
    TOPIC: str


EVENTS: dict[str, type[Event]] = {}
"""Every bound event class by its type, `wallet.Held`."""

RENAMED: dict[str, str] = {}
"""Types that events had once, and what they are called today: rows and records keep the name that they were written with."""


class Event(library.AggregateEvent, metaclass=EventMeta):
    """Something that happened to one aggregate. Subclasses are frozen data classes; `apply` records and never refuses."""

    domain: ClassVar[str]
    type: ClassVar[str]
    binding: ClassVar[schemas.Binding]

    @property
    def id(self) -> UUID:
        """The aggregate that it happened to."""
        return self.originator_id

    @property
    def version(self) -> int:
        """The aggregate's version after it, from 1."""
        return self.originator_version

    @property
    def at(self) -> datetime:
        """When it happened, UTC."""
        return self.timestamp

    @staticmethod
    def create_timestamp() -> datetime:
        return clock.now()

    def __post_init__(self) -> None:
        """The library's type check of `originator_id` is the mapper's and the type checker's work here."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A field of an event that came `undecoded`: now its body is read, once and for all fields."""
            cls, mine = type(self), self.__dict__
            state = mine.get(UNREAD)
            if state is None:
                raise AttributeError(f"{cls.__name__!r} has no {name!r}")
            read, values = schemas.decode(cls.domain, state)
            if read != cls.__name__:
                raise schemas.Unreadable(f"{cls.domain}.{read} came as {cls.type}")
            if cls in CREATED_BY:
                values["originator_topic"] = CREATED_BY[cls].aggregate_name
            del mine[UNREAD]
            mine.update(values)
            return getattr(self, name)

    def claims(self) -> Iterable[Take | Free]:
        """Unique keys that this event takes or frees, derived from its fields alone so that a rebuilt store has them."""
        return ()

    def timers(self) -> Iterable[Timer | Cancel]:
        """Timers that this event starts or ends, derived from its fields alone."""
        return ()


class Created(Event, library.AggregateCreated):
    """The first event of an aggregate."""


CHOSEN_ID: ContextVar[UUID | None] = ContextVar("chosen_id", default=None)


@contextmanager
def under_id(id: UUID) -> Iterator[None]:
    """Aggregates made in here get this id: by their class or by a class method that makes one."""
    token = CHOSEN_ID.set(id)
    try:
        yield
    finally:
        CHOSEN_ID.reset(token)


class Aggregate(library.Aggregate):
    """One consistency boundary: its methods decide (`require`, then `trigger_event`), its events' `apply` records."""

    domain: ClassVar[str] = ""
    aggregate_name: ClassVar[str] = ""
    snapshot_every: ClassVar[int] = 200
    """Events between two snapshots; 0 for none."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        domain = domain_of(cls.__module__)
        if domain is None:
            return
        cls.domain, cls.aggregate_name = domain, f"{domain}.{cls.__name__}"
        AGGREGATES[cls.aggregate_name] = cls
        cls.TOPIC = cls.aggregate_name
        register_topic(cls.aggregate_name, cls)
        for created in library._created_event_classes.get(cls, ()):
            CREATED_BY[created] = cls

    TOPIC: ClassVar[str]

    @staticmethod
    def create_id(*_: Any, **__: Any) -> UUID:
        return CHOSEN_ID.get() or clock.new_id()

    if not TYPE_CHECKING:

        @classmethod
        def _create(cls, event_class, *, id=None, **fields):
            """The library's, without looking into signatures: its class knows how an id, a topic and a time are made."""
            if id is None and cls.create_id is not Aggregate.create_id:  # made of the fields
                return super()._create(event_class, **fields)
            fields["originator_topic"] = cls.aggregate_name
            fields["originator_id"] = id or cls.create_id()
            fields["originator_version"] = cls.INITIAL_VERSION
            fields["timestamp"] = event_class.create_timestamp()
            made = event_class(**fields)
            aggregate = made.mutate(None)
            aggregate.pending_events.append(made)
            return aggregate

    def check(self) -> None:
        """Assert the invariants. Called before each commit: a failure is a bug of ours and stores nothing."""

    if TYPE_CHECKING:

        def trigger_event(self, event_class: type[library.CanMutateAggregate[UUID]], **kwargs: Any) -> None: ...

        def collect_events(self) -> Sequence[Event]: ...

        def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...


AGGREGATES: dict[str, type[Aggregate]] = {}
"""Every aggregate class by its name, `wallet.Wallet`."""

CREATED_BY: dict[type[Any], type[Aggregate]] = {}
"""Which aggregate an event that creates belongs to."""
