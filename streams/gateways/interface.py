"""What `streams/payment.py` asks of a payment gateway. A gateway is one module beside this one, `connect(settings)` its door.

Every request goes under our own references (the ids of payment, capture and refund), and a gateway does what comes again under
one of them once. An adapter whose vendor does not promise that asks the vendor first. So after an answer that was lost nothing
is charged twice, whoever sends it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Concatenate, ParamSpec, Protocol, runtime_checkable
from uuid import UUID

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways.settings import GatewaySettings
from streams.gateways.signature import Forged

__all__ = [
    "Confirm",
    "Confirming",
    "Declined",
    "Fact",
    "Forged",
    "Gateway",
    "GatewaySettings",
    "Notice",
    "Returning",
    "Unknown",
    "Unreached",
    "calls",
    "fact",
    "open_gateway",
]

P = ParamSpec("P")


@dataclass(frozen=True)
class Fact:
    """Something that a gateway says of a payment: the command that records it, `Payment.authorised(transaction, expires_at)`."""

    call: Callable[..., None]
    args: tuple[Any, ...]


def fact(call: Callable[Concatenate[Payment, P], None], *args: P.args, **kwargs: P.kwargs) -> Fact:
    """A fact, its arguments checked against the command's."""
    return Fact(call, args)


def calls(
    gateway: str, payment: UUID, facts: Sequence[Fact]
) -> list[tuple[UUID, Callable[..., None], tuple[Any, ...]]]:
    """The commands that record what a gateway says, for `Commands.tell_all`: all in one commit, or none when it is not in charge."""
    return [(payment, Payment.speaks, (gateway,)), *((payment, one.call, one.args) for one in facts)]


@dataclass(frozen=True)
class Notice:
    """A webhook that is genuine: what it says, and the gateway's own id of it, the same whenever it is sent again."""

    id: str
    payment: UUID
    facts: Sequence[Fact]


class Unknown(Exception):
    """What came of the request is not known: no answer, or one that says nothing. `str` is a sentence."""


class Unreached(Unknown):
    """The gateway was not reached: the request is certain not to have been carried out."""


class Declined(Exception):
    """The gateway is certain not to have done it. `code` and `reason` are as of a payment that is declined."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Confirm:
    """Nothing is attached before the customer has confirmed it at the bank, at `url`."""

    url: str


class Gateway(Protocol):
    """One provider. The facts of an answer may be all that it knows of the payment. Each raises `Unknown`."""

    async def authorise(self, payment: Payment) -> Sequence[Fact]: ...

    async def capture(self, payment: Payment, capture: UUID, amount: Money) -> Sequence[Fact]: ...

    async def void(self, payment: Payment) -> Sequence[Fact]:
        """Gives back what is held. Closes a reference that it does not know: an authorise that comes late is not carried out.

        Also asked of a gateway that was left, which knows the payment by our reference alone (`Payment.as_left`).
        """

    async def refund(self, payment: Payment, refund: UUID, amount: Money) -> Sequence[Fact]: ...

    async def lookup(self, payment: Payment) -> Sequence[Fact]:
        """All that it knows under our references; nothing when it has never heard of them."""

    async def attach(self, customer: UUID, method: UUID, token: str, details: Mapping[str, str]) -> str | Confirm:
        """Keeps a way to pay for the customer; the token that it can be charged by from then on, again and again, for that customer alone.

        `token` is what its form in the browser made; empty where the form makes none: `details` are then what it has encrypted, by the
        vendor's own names. `method`: our id of it. Asked again it is the same one. Raises `Declined`, or `Unknown`.
        """

    async def detach(self, customer: UUID, token: str) -> None:
        """Forgets a way to pay, `ALL` of the customer's if it is empty. What it does not keep it has forgotten. Raises `Unknown`."""

    def notice(self, header: Callable[[str], str | None], body: bytes, now: datetime) -> Notice | None:
        """Reads a webhook; `header` gives one by its lower-case name. None: genuine, and nothing to us. Raises `Forged`."""

    async def close(self) -> None: ...


@runtime_checkable
class Returning(Protocol):
    """A gateway that has to be told when a customer's browser is back from the bank."""

    async def returned(self, payment: Payment, query: Mapping[str, str]) -> Sequence[Fact]:
        """`query`: of the address it came back to. Raises `Unknown`: a webhook will tell."""


@runtime_checkable
class Confirming(Protocol):
    """A gateway that attaches some ways to pay only when the customer's browser is back from the bank."""

    async def confirmed(self, customer: UUID, method: UUID, query: Mapping[str, str]) -> str:
        """The token of what is attached now. `query`: of the address that the browser came back to. Raises `Declined`, or `Unknown`."""


def open_gateway(name: str, settings: GatewaySettings) -> Gateway:
    """The gateway of that name in the settings: `connect(settings)` of its adapter, `streams.gateways.<adapter>`, with the settings
    as they are for it. Raises `LookupError`."""
    terms = settings.gateways.get(name)
    adapter = (terms.adapter or name) if terms else ""
    found = import_module(f"{__package__}.{adapter}") if terms and find_spec(f"{__package__}.{adapter}") else None
    connect = getattr(found, "connect", None)
    if connect is None:
        raise LookupError(f"there is no gateway {name}")
    gateway: Gateway = connect(settings.at(name))
    return gateway
