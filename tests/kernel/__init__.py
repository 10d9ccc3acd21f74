"""Given, when, then: an aggregate's rules as sentences. Every event goes through its .avsc and back.

given(Wallet, fact(Opened, owner=ADA), fact(Deposited, amount=60)).when(Wallet.hold, ESCROW, 60).then(fact(Held, …))
given(Wallet, …).when(Wallet.hold, ESCROW, 100).refused("more than the balance")
given(Wallet, …).when(Wallet.hold, ESCROW, 60).nothing()
given(Wallet).opening(Wallet, ADA, "EUR").then(fact(Opened, …))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, cast
from uuid import uuid4

from aggregates.kernel import Aggregate, Event, Invalid, Refused, Sealed, clock, snapshot, wire

A = TypeVar("A", bound=Aggregate)
P = ParamSpec("P")
SAID = Sealed("sealed:1:ada:words")  # why somebody does something, as events hold it
NOT_FIELDS = frozenset({"originator_id", "originator_version", "originator_topic", "timestamp"})


class Fact(NamedTuple):
    """An event without its envelope: its class and its own fields."""

    kind: type[Event]
    fields: dict[str, Any]


def fact(kind: type[Event], /, **fields: Any) -> Fact:
    """An event that happened, or that is expected to."""
    return Fact(kind, fields)


def fact_of(event: Event) -> Fact:
    """What an event says, without its envelope."""
    return Fact(type(event), {name: value for name, value in vars(event).items() if name not in NOT_FIELDS})


def through_avro(event: Event) -> Event:
    """The event as whoever reads it from the store or the topic gets it; it must be the same."""
    back = wire.decode(event.domain, event.id, event.version, event.at, wire.encode(event))
    assert fact_of(back) == fact_of(event), f"{event} comes back from Avro as {back}"
    return back


def folded(events: Sequence[Event], into: A | None = None) -> A | None:
    """The aggregate after these events."""
    for event in events:
        into = cast("A | None", event.mutate(into))
    return into


@dataclass
class Given(Generic[A]):
    """An aggregate's past."""

    cls: type[A]
    events: list[Event] = field(default_factory=list)

    def when(self, method: Callable[Concatenate[A, P], None], /, *args: P.args, **kwargs: P.kwargs) -> Outcome:
        """A command on it."""
        aggregate = folded(self.events, cast("A | None", None))
        assert aggregate is not None, "given() needs the event that creates it"
        no = _attempt(lambda: method(aggregate, *args, **kwargs))
        if no is not None:
            assert not aggregate.pending_events, f"{no}, but it had begun to change"
            return Outcome([], no)
        aggregate.check()
        made = [through_avro(event) for event in aggregate.collect_events()]
        again = folded(self.events + made, cast("A | None", None))
        assert again is not None and again == aggregate, "replayed, the events give another state"
        kept = snapshot.restore(self.cls, aggregate.id, aggregate.version, snapshot.dump(aggregate))
        assert kept == aggregate, "a snapshot gives another state"
        return Outcome([fact_of(event) for event in made])

    def opening(self, make: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs) -> Outcome:
        """The command that creates it: the class itself, or a class method."""
        try:
            aggregate = make(*args, **kwargs)
        except (Refused, Invalid) as no:
            return Outcome([], no)
        aggregate.check()
        return Outcome([fact_of(through_avro(event)) for event in aggregate.collect_events()])

    @property
    def state(self) -> A:
        """The aggregate now, to look at."""
        aggregate = folded(self.events, cast("A | None", None))
        assert aggregate is not None
        return aggregate


@dataclass
class Outcome:
    """What a command made of it."""

    facts: list[Fact]
    no: Exception | None = None

    def then(self, *expected: Fact) -> None:
        """Exactly these events, in this order."""
        assert self.no is None, f"refused: {self.no}"
        assert self.facts == list(expected)

    def refused(self, why: str) -> None:
        """A rule says no (`Refused`, `Invalid`), in words that contain `why`; nothing happened."""
        assert self.no is not None, f"not refused: {self.facts}"
        assert why in str(self.no), f"refused, but with: {self.no}"

    def nothing(self) -> None:
        """Accepted, and nothing happened: it was so already."""
        self.then()


def given(cls: type[A], *facts: Fact) -> Given[A]:
    """An aggregate to which these things happened, now; none of them for `opening`."""
    id, events = uuid4(), []
    for version, (kind, fields) in enumerate(facts, start=1):
        envelope: dict[str, Any] = {"originator_id": id, "originator_version": version, "timestamp": clock.now()}
        if version == 1:
            envelope["originator_topic"] = cls.TOPIC
        events.append(through_avro(kind(**envelope, **fields)))
    return Given(cls, events)


def accepted(method: Callable[P, None], /, *args: P.args, **kwargs: P.kwargs) -> bool:
    """Give a command to an aggregate, `accepted(wallet.hold, ESCROW, 60)`: True unless a rule says no.

    What it decided goes through Avro, and the aggregate's own invariants are checked.
    """
    aggregate = cast(Aggregate, method.__self__)  # type: ignore[attr-defined]
    before = aggregate.version
    if _attempt(lambda: method(*args, **kwargs)) is not None:
        assert aggregate.version == before, "refused, but it had begun to change"
        return False
    for event in aggregate.collect_events():
        through_avro(event)
    aggregate.check()
    return True


def _attempt(command: Callable[[], None]) -> Exception | None:
    """Why a rule refuses the command, or None."""
    try:
        command()
    except (Refused, Invalid) as no:
        return no
    return None
