"""Abandoned carts: nobody has touched one for a while, though there is something in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from aggregates.cart import (
    Added,
    Cart,
    Changed,
    CheckedOut,
    Expired,
    GivenUp,
    Locked,
    Merged,
    Removed,
    Repriced,
    Unlocked,
)
from aggregates.kernel import Commands, Event
from infra.settings import Settings
from streams.kernel.processor import Processor

MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Untouched:
    """An open cart: when somebody touched it last, how many lines it has, and whether its abandonment is waited for."""

    since: datetime
    skus: frozenset[str]
    watched: bool = True


class Abandonment(Processor[Untouched]):
    """The cart itself decides whether it is abandoned, and withdraws that when the shopper returns."""

    name = "abandonment"
    events = (Added, Changed, Removed, Repriced, Merged, Locked, Unlocked, GivenUp, CheckedOut, Expired)
    state = Untouched

    def __init__(self, settings: Settings) -> None:
        self.after = timedelta(seconds=settings.abandoned_after_s)

    def on(self, state: Untouched | None, event: Event) -> Untouched | None:
        skus = state.skus if state else frozenset()
        match event:
            case GivenUp() | CheckedOut() | Expired():
                return None
            case Locked():
                return state and Untouched(state.since, skus, watched=False)
            case Unlocked(reopened=False):
                return state
            case Added():
                skus |= {event.sku}
            case Removed():
                skus -= {event.sku}
            case Merged():
                skus |= {line.sku for line in event.lines}
        # Each touch is later than the one before, whoever's clock has stamped it: so each has a timer of its own.
        since = max(event.at, state.since + MICROSECOND) if state else event.at
        return Untouched(since, skus, watched=bool(skus))

    def due(self, state: Untouched) -> datetime | None:
        return state.since + self.after if state.watched else None

    async def fire(self, id: UUID, state: Untouched, commands: Commands) -> None:
        await commands.tell(id, Cart.abandon, state.since)

    def fired(self, state: Untouched) -> Untouched:
        return Untouched(state.since, state.skus, watched=False)
