"""A circuit breaker a gateway: one that does not answer is left alone for a while, so that payments go elsewhere at once.

Our own, because of three things that the libraries at hand (purgatory, aiobreaker, pybreaker) do not have together: only one probe
at a time while half open, however many coroutines wait; outcomes of requests that began before the circuit changed count for
nothing; and a look-up that succeeds does not say that payments do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Literal, TypeVar
from uuid import UUID

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways.interface import Fact, Gateway, Unknown, Unreached

State = Literal["closed", "half open", "open"]
T = TypeVar("T")


class Circuit:
    """Opens after `failures_max` requests of unknown outcome with no success between them, for `open_for`, twice as long after each
    probe that fails, up to `open_for_max`. Time is the caller's, and state that of this process."""

    def __init__(
        self,
        name: str,
        clock: Callable[[], datetime],
        failures_max: int = 5,
        open_for: timedelta = timedelta(seconds=10),
        open_for_max: timedelta = timedelta(minutes=2),
        changed: Callable[[str, State], None] = lambda name, state: None,
    ) -> None:
        self._name, self._clock, self._changed = name, clock, changed
        self._failures_max, self._first, self._longest = failures_max, open_for, open_for_max
        self._failures = 0
        self._era = 0  # counts the changes of state
        self._opened_at: datetime | None = None
        self._pause = open_for
        self._probing = False

    @property
    def state(self) -> State:
        if self._opened_at is None:
            return "closed"
        waited = self._clock() - self._opened_at
        return "half open" if waited >= self._pause or waited < timedelta() else "open"

    @property
    def until(self) -> datetime:
        """When it lets a probe through; now, if it is closed."""
        return self._clock() if self._opened_at is None else self._opened_at + self._pause

    @property
    def passes(self) -> bool:
        """Whether a request would be sent."""
        return self.state == "closed" or (self.state == "half open" and not self._probing)

    async def call(self, request: Callable[[], Awaitable[T]], proves: bool = True) -> T:
        """Send a request, or raise `Unreached` because it is not worth it. `proves`: its success shows that the gateway works."""
        if not self.passes:
            raise Unreached(f"{self._name} is left alone for a while: it did not answer before")
        era, self._probing = self._era, self._opened_at is not None
        probe = self._probing
        try:
            found = await request()
        except Unknown:
            if era == self._era:
                self._failed()
            raise
        else:
            if era == self._era and proves:
                self._worked()
            return found
        finally:
            if probe:
                self._probing = False

    def _failed(self) -> None:
        self._failures += 1
        if self._opened_at is not None:
            self._pause = min(2 * self._pause, self._longest)
            self._turn("open")
        elif self._failures >= self._failures_max:
            self._turn("open")

    def _worked(self) -> None:
        self._failures = 0
        if self._opened_at is not None:
            self._pause = self._first
            self._turn("closed")

    def _turn(self, state: State) -> None:
        self._era += 1
        self._opened_at = self._clock() if state == "open" else None
        self._changed(self._name, state)


class Guarded:
    """A gateway behind its circuit."""

    def __init__(self, gateway: Gateway, circuit: Circuit) -> None:
        self._gateway, self.circuit = gateway, circuit
        self.notice, self.close = gateway.notice, gateway.close
        self.attach, self.detach = gateway.attach, gateway.detach  # how they go says nothing of payments

    async def authorise(self, payment: Payment) -> Sequence[Fact]:
        return await self.circuit.call(partial(self._gateway.authorise, payment))

    async def capture(self, payment: Payment, capture: UUID, amount: Money) -> Sequence[Fact]:
        return await self.circuit.call(partial(self._gateway.capture, payment, capture, amount))

    async def void(self, payment: Payment) -> Sequence[Fact]:
        return await self.circuit.call(partial(self._gateway.void, payment))

    async def refund(self, payment: Payment, refund: UUID, amount: Money) -> Sequence[Fact]:
        return await self.circuit.call(partial(self._gateway.refund, payment, refund, amount))

    async def lookup(self, payment: Payment) -> Sequence[Fact]:
        return await self.circuit.call(partial(self._gateway.lookup, payment), proves=False)
