"""The ways to pay that a customer keeps: a gateway's token each, and what it takes to tell them apart. Never a card number."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from aggregates.kernel import Aggregate, Created, Event, NotFound, Sealed, event, require
from aggregates.kernel.token import payment_token, require_usable

Brand = Literal["visa", "mastercard", "amex", "discover", "jcb", "diners", "unionpay", "cartes_bancaires", "other"]

METHODS_MAX = 20


@dataclass(frozen=True, slots=True)
class Method:
    """`expires`: the last month that it can be used in, 2027-09."""

    gateway: str
    token: str
    brand: str
    last_four: Sealed
    expires: str


# What can happen. `apply` only records: it never refuses, so old events always load.
class MethodsKept(Created):
    """The first of a customer's ways to pay is about to be saved."""


class MethodSaved(Event):
    method: UUID
    gateway: str
    token: str
    brand: str
    last_four: Sealed
    expires: str

    def apply(self, methods: Methods) -> None:
        methods.kept[self.method] = Method(self.gateway, self.token, self.brand, self.last_four, self.expires)


class MethodRemoved(Event):
    method: UUID

    def apply(self, methods: Methods) -> None:
        del methods.kept[self.method]
        if methods.preferred == self.method:
            methods.preferred = None


class MethodPreferred(Event):
    method: UUID

    def apply(self, methods: Methods) -> None:
        methods.preferred = self.method


# What is allowed.
class Methods(Aggregate):
    """Its id is the customer's. `preferred` is used unless another one is named."""

    @event(MethodsKept)
    def __init__(self) -> None:
        self.kept: dict[UUID, Method] = {}
        self.preferred: UUID | None = None

    @classmethod
    def begin(cls, method: UUID, gateway: str, token: str, brand: Brand, last_four: Sealed, expires: str) -> Methods:
        """A customer's first one."""
        methods = cls()
        methods.save(method, gateway, token, brand, last_four, expires)
        return methods

    def save(self, method: UUID, gateway: str, token: str, brand: Brand, last_four: Sealed, expires: str) -> None:
        """Under an id of the customer's own: the same again replaces it. The first one is preferred."""
        given = Method(gateway, payment_token(token), brand, last_four, expires)
        before = self.kept.get(method)
        if before == given:
            return
        require(brand in get_args(Brand), "there is no such brand")
        require(
            before is not None or len(self.kept) < METHODS_MAX, f"a customer keeps at most {METHODS_MAX} ways to pay"
        )
        others = {(one.gateway, one.token) for id, one in self.kept.items() if id != method}
        require((gateway, token) not in others, "it is saved already, under another id")
        self.trigger_event(
            MethodSaved,
            method=method,
            gateway=gateway,
            token=token,
            brand=brand,
            last_four=last_four,
            expires=expires,
        )
        if self.preferred is None:
            self.trigger_event(MethodPreferred, method=method)

    def remove(self, method: UUID) -> None:
        if method in self.kept:
            self.trigger_event(MethodRemoved, method=method)

    def prefer(self, method: UUID) -> None:
        """Use it unless another one is named."""
        self.found(method)
        if self.preferred != method:
            self.trigger_event(MethodPreferred, method=method)

    def use(self, method: UUID, gateway: str, token: str, now: datetime) -> None:
        """Refuse to pay with one that is not what it was when it was chosen. Raises `NotFound` for one that was removed since."""
        kept = self.found(method)
        require((kept.gateway, kept.token) == (gateway, token), "this way to pay was changed meanwhile")
        require_usable(kept.expires, now)

    def found(self, method: UUID) -> Method:
        """Raises `NotFound`."""
        if method not in self.kept:
            raise NotFound(f"there is no payment method {method}")
        return self.kept[method]

    def check(self) -> None:
        assert self.preferred is None or self.preferred in self.kept
        assert len({(one.gateway, one.token) for one in self.kept.values()}) == len(self.kept) <= METHODS_MAX
