"""Voucher: prepaid value, a gift card for whoever has its code or the store credit of one person.

Its value is a quota: what is redeemed never exceeds it, in parts or at once, and a checkout can have a part reserved. Of the
code only a keyed hash is kept. What is spendable after an event is its `balance`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from aggregates.kernel import (
    Aggregate,
    Cancel,
    Created,
    Event,
    Free,
    Money,
    NotFound,
    Quota,
    Take,
    Timer,
    event,
    require,
)
from aggregates.kernel.money import payable
from schemas import Sealed

Kind = Literal["gift", "credit"]
Status = Literal["active", "void", "expired"]

RESERVATIONS_MAX = 100  # of one voucher at a time
REFUNDS_MAX = 1_000  # of one voucher
AT_ONCE = timedelta(minutes=1)  # what is reserved and redeemed in one command
VALUE = "value"


# What can happen. `apply` only records: it never refuses, so old events always load.
class Issued(Created):
    kind: Kind
    value: Money
    code: str  # its keyed hash; "" for none
    hint: str
    holder: UUID | None  # None: whoever has the code
    batch: UUID | None
    expires_at: datetime | None

    def claims(self) -> Iterable[Take | Free]:
        return [Take("code", self.code)] if self.code else []

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer("expire", self.expires_at, Voucher.expire)] if self.expires_at else []


class Reserved(Event):
    reservation: UUID
    amount: int
    balance: int
    expires_at: datetime | None

    def apply(self, voucher: Voucher) -> None:
        voucher.quota.reserve(self.reservation, {VALUE: self.amount})

    def timers(self) -> Iterable[Timer | Cancel]:
        if self.expires_at is None:
            return []
        return [Timer(_timer(self.reservation), self.expires_at, Voucher.lapse, (str(self.reservation),))]


class Redeemed(Event):
    reservation: UUID
    amount: int
    balance: int

    def apply(self, voucher: Voucher) -> None:
        voucher.quota.confirm(self.reservation, self.at)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(_timer(self.reservation))]


class Released(Event):
    reservation: UUID
    amount: int  # 0: nothing was reserved yet, the reservation is only closed
    balance: int

    def apply(self, voucher: Voucher) -> None:
        voucher.quota.release(self.reservation, self.at)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(_timer(self.reservation))]


class Lapsed(Event):
    """The time of a reservation is over."""

    reservation: UUID
    amount: int
    balance: int

    def apply(self, voucher: Voucher) -> None:
        voucher.quota.release(self.reservation, self.at, "expired")


class Refunded(Event):
    """A part of what was spent can be spent again."""

    refund: UUID
    amount: int
    balance: int

    def apply(self, voucher: Voucher) -> None:
        voucher.quota.give_back(VALUE, self.amount)
        voucher.refunds[self.refund] = self.amount


class Transferred(Event):
    holder: UUID

    def apply(self, voucher: Voucher) -> None:
        voucher.holder = self.holder


class Voided(Event):
    """`because`: what somebody typed, sealed for the holder, or of nobody's voucher for who typed it; older events have it as `reason`."""

    reason: str
    because: Sealed | None
    amount: int  # that can't be spent any more

    def apply(self, voucher: Voucher) -> None:
        voucher.status = "void"

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("expire")]


class Expired(Event):
    amount: int  # that can't be spent any more

    def apply(self, voucher: Voucher) -> None:
        voucher.status = "expired"


def _timer(reservation: UUID) -> str:
    return f"reservation:{reservation}"


# What is allowed.
class Voucher(Aggregate):
    """The quota's limit is the value. What is reserved when it ends can still be redeemed, but not be spent otherwise."""

    @event(Issued)
    def __init__(
        self,
        kind: Kind,
        value: Money,
        code: str,
        hint: str,
        holder: UUID | None,
        batch: UUID | None,
        expires_at: datetime | None,
    ) -> None:
        self.kind, self.currency, self.holder, self.batch, self.expires_at = (
            kind,
            value.currency,
            holder,
            batch,
            expires_at,
        )
        self.status: Status = "active"
        self.quota = Quota(limits={VALUE: value.amount})
        self.refunds: dict[UUID, int] = {}

    @classmethod
    def gift(
        cls, value: Money, code: str, hint: str, expires_at: datetime | None, now: datetime, batch: UUID | None = None
    ) -> Voucher:
        """A gift card: spent by whoever has the code, whose keyed hash is `code`, until somebody claims it."""
        _issuable(value, expires_at, now)
        return cls("gift", value, code, hint, None, batch, expires_at)

    @classmethod
    def credit(cls, value: Money, holder: UUID, expires_at: datetime | None, now: datetime) -> Voucher:
        """Store credit of one person: there is no code."""
        _issuable(value, expires_at, now)
        return cls("credit", value, "", "", holder, None, expires_at)

    @property
    def balance(self) -> int:
        """What can be spent, minor units."""
        return self._balance(0)

    def usable(self, by: UUID, now: datetime) -> bool:
        """Whether this person could spend something of it."""
        alive = self.status == "active" and (self.expires_at is None or now < self.expires_at)
        return alive and self.holder in (None, by)

    def reserve(self, reservation: UUID, amount: Money, by: UUID, until: datetime | None, now: datetime) -> None:
        """Set a part aside for `by` until a time; without one until it is confirmed or released: whoever reserves so must not
        forget it, and a saga does not. The same again does nothing; one that ended stays closed.
        """
        payable(amount)
        require(amount.currency == self.currency, f"the voucher is in {self.currency}, not {amount.currency}")
        if self.holder not in (None, by):
            raise NotFound(f"there is no voucher {self.id}")
        if not self.quota.may_reserve(reservation, {VALUE: amount.amount}):
            return
        require(self.status == "active", f"the voucher is {self.status}")
        require(self.usable(by, now), "the voucher is expired")
        require(len(self.quota.holds) < RESERVATIONS_MAX, f"a voucher has at most {RESERVATIONS_MAX} reservations")
        self.trigger_event(
            Reserved,
            reservation=reservation,
            amount=amount.amount,
            balance=self._balance(-amount.amount),
            expires_at=until,
        )

    def confirm(self, reservation: UUID) -> None:
        """What is reserved is redeemed."""
        if self.quota.may_confirm(reservation):
            self.trigger_event(
                Redeemed, reservation=reservation, amount=self._reserved(reservation), balance=self.balance
            )

    def redeem(self, redemption: UUID, amount: Money, by: UUID, now: datetime) -> None:
        """Spend a part at once."""
        self.reserve(redemption, amount, by, now + AT_ONCE, now)
        self.confirm(redemption)

    def release(self, reservation: UUID) -> None:
        """Free what is reserved. With nothing reserved it closes the reservation: one that comes late finds it closed."""
        if self.quota.may_release(reservation):
            amount = self._reserved(reservation)
            self.trigger_event(Released, reservation=reservation, amount=amount, balance=self._balance(amount))

    def lapse(self, reservation: str) -> None:
        """The reservation's timer rings. It ended meanwhile: nothing."""
        if self.quota.may_expire(id := UUID(reservation)):
            amount = self._reserved(id)
            self.trigger_event(Lapsed, reservation=id, amount=amount, balance=self._balance(amount))

    def refund(self, refund: UUID, amount: Money, to: UUID, now: datetime) -> None:
        """Put back what `to` had spent of it. The same again does nothing. Refused when it has ended or is another's."""
        payable(amount)
        require(amount.currency == self.currency, f"the voucher is in {self.currency}, not {amount.currency}")
        if refund in self.refunds:
            before = self.refunds[refund]
            require(before == amount.amount, f"refund {refund} is of {before}, not {amount.amount}")
            return
        require(self.status == "active", f"the voucher is {self.status}")
        require(self.usable(to, now), "the voucher is expired, or another person's")
        require(len(self.refunds) < REFUNDS_MAX, f"a voucher takes at most {REFUNDS_MAX} refunds")
        self.quota.may_give_back(VALUE, amount.amount)
        self.trigger_event(Refunded, refund=refund, amount=amount.amount, balance=self._balance(amount.amount))

    def claim(self, by: UUID, now: datetime) -> None:
        """Who has the code makes it their own: from now on the code alone is not enough."""
        if not self.usable(by, now):
            raise NotFound(f"there is no voucher {self.id}")
        if self.holder is None:
            self.trigger_event(Transferred, holder=by)

    def transfer(self, to: UUID) -> None:
        """The holder gives it to another person."""
        require(self.holder is not None, "a gift card is given by its code, or claimed first")
        require(self.status == "active", f"the voucher is {self.status}")
        if self.holder != to:
            self.trigger_event(Transferred, holder=to)

    def void(self, because: Sealed | None) -> None:
        """It was lost, stolen or issued by mistake."""
        if self.status == "void":
            return
        require(self.status == "active", f"the voucher is {self.status}")
        self.trigger_event(Voided, reason="", because=because, amount=self.balance)

    def expire(self) -> None:
        """The voucher's timer rings."""
        if self.status == "active":
            self.trigger_event(Expired, amount=self.balance)

    def _reserved(self, reservation: UUID) -> int:
        return self.quota.holds.get(reservation, {}).get(VALUE, 0)

    def _balance(self, change: int) -> int:
        """What can be spent after what is free has changed: nothing, once it is void or expired."""
        free = self.quota.free(VALUE)
        assert free is not None
        return free + change if self.status == "active" else 0

    def check(self) -> None:
        self.quota.check()
        free = self.quota.free(VALUE)
        assert free is not None and 0 <= free <= self.quota.limits[VALUE], free
        assert self.kind == "gift" or self.holder is not None


def _issuable(value: Money, expires_at: datetime | None, now: datetime) -> None:
    payable(value)
    require(expires_at is None or expires_at > now, "a voucher expires in the future")
