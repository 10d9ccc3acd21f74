"""The ways to pay that a customer keeps: a gateway's token each, and what it takes to tell them apart. Never a card number.

A gateway keeps it, too: it is asked to attach what its form has made to the customer (`AttachRequested`), and answers with the token
that can be charged again and again (`MethodSaved`). What is no longer used here it is told to forget, until it has (`Detached`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from aggregates.kernel import Aggregate, Created, Event, NotFound, Sealed, event, require
from aggregates.kernel.token import payment_token, require_usable

Brand = Literal["visa", "mastercard", "amex", "discover", "jcb", "diners", "unionpay", "cartes_bancaires", "other"]

METHODS_MAX = 20
ASKED_MAX = 20  # attachments under way that are remembered: of those without an end the oldest go first
ALL = ""  # instead of a token: whatever the gateway keeps of the customer
REASON_CHARS_MAX = 200  # kept of what a gateway says


@dataclass(frozen=True, slots=True)
class Method:
    """`expires`: the last month that it can be used in, 2027-09. `token` is empty until the gateway has said it."""

    gateway: str
    token: str
    brand: str
    last_four: Sealed
    expires: str


# What can happen. `apply` only records: it never refuses, so old events always load.
class MethodsKept(Created):
    """The first of a customer's ways to pay is about to be saved."""


class AttachRequested(Event):
    method: UUID
    gateway: str
    brand: str
    last_four: Sealed
    expires: str

    def apply(self, methods: Methods) -> None:
        methods.asked.pop(self.method, None)
        methods.asked[self.method] = Method(self.gateway, "", self.brand, self.last_four, self.expires)
        for oldest in [*methods.asked][:-ASKED_MAX]:
            del methods.asked[oldest]
        methods.gateways.add(self.gateway)


class AttachDeclined(Event):
    method: UUID
    gateway: str
    code: str
    reason: str

    def apply(self, methods: Methods) -> None:
        methods.asked.pop(self.method, None)


class MethodSaved(Event):
    method: UUID
    gateway: str
    token: str
    brand: str
    last_four: Sealed
    expires: str

    def apply(self, methods: Methods) -> None:
        methods.asked.pop(self.method, None)
        methods.kept[self.method] = Method(self.gateway, self.token, self.brand, self.last_four, self.expires)
        methods.gateways.add(self.gateway)


class MethodRemoved(Event):
    method: UUID
    gateway: str
    token: str

    def apply(self, methods: Methods) -> None:
        del methods.kept[self.method]
        if methods.preferred == self.method:
            methods.preferred = None
        if self.gateway:
            methods.leaving.add((self.gateway, self.token))


class MethodPreferred(Event):
    method: UUID

    def apply(self, methods: Methods) -> None:
        methods.preferred = self.method


class MethodsForgotten(Event):
    def apply(self, methods: Methods) -> None:
        methods.forgotten = True
        methods.asked = {}
        methods.leaving |= {(gateway, ALL) for gateway in methods.gateways}


class Detached(Event):
    gateway: str
    token: str

    def apply(self, methods: Methods) -> None:
        methods.leaving.discard((self.gateway, self.token))


# What is allowed.
class Methods(Aggregate):
    """Its id is the customer's. `preferred` is used unless another one is named.

    `asked`: what gateways are to attach; `gateways`: all that ever were asked; `leaving`: what they are to forget, gateway and token.
    """

    @event(MethodsKept)
    def __init__(self) -> None:
        self.kept: dict[UUID, Method] = {}
        self.preferred: UUID | None = None
        self.asked: dict[UUID, Method] = {}
        self.gateways: set[str] = set()
        self.leaving: set[tuple[str, str]] = set()
        self.forgotten = False

    def ask(self, method: UUID, gateway: str, token: str, brand: Brand, last_four: Sealed, expires: str) -> None:
        """The gateway is going to be asked to attach it. Under an id of the customer's own: another one under it replaces it.

        `token`: what it is asked to attach, empty where the gateway makes one of it. What is kept already is not asked for again.
        """
        require(not self.forgotten, "this person was erased")
        given = Method(gateway, payment_token(token) if token else "", brand, last_four, expires)
        require(brand in get_args(Brand), "there is no such brand")
        before = self.kept.get(method)
        require(
            before is not None or len(self.kept) < METHODS_MAX, f"a customer keeps at most {METHODS_MAX} ways to pay"
        )
        self._is_free(method, gateway, token)
        under_way = self.asked.get(method)
        if under_way != replace(given, token="") and not (under_way is None and before == given):
            self.trigger_event(
                AttachRequested, method=method, gateway=gateway, brand=brand, last_four=last_four, expires=expires
            )

    def declined(self, method: UUID, gateway: str, code: str, reason: str) -> None:
        """The gateway does not keep it."""
        if method in self.asked and self.asked[method].gateway == gateway:
            self.trigger_event(
                AttachDeclined, method=method, gateway=gateway, code=code, reason=reason[:REASON_CHARS_MAX]
            )

    def attached(self, method: UUID, gateway: str, token: str) -> None:
        """The gateway keeps it, and charges it by `token`: it is saved. The first one is preferred."""
        payment_token(token)
        before, asked = self.kept.get(method), self.asked.get(method)
        if asked is None and before is not None and (before.gateway, before.token) == (gateway, token):
            return
        if self.forgotten:  # the gateway was asked before: it has to forget this one, too
            self.trigger_event(MethodsForgotten)
            return
        if asked is None or asked.gateway != gateway:
            raise NotFound(f"the gateway {gateway} was not asked for a payment method {method}")
        require(
            before is not None or len(self.kept) < METHODS_MAX, f"a customer keeps at most {METHODS_MAX} ways to pay"
        )
        self._is_free(method, gateway, token)
        preferred = self.preferred in (None, method)
        if before is not None and (before.gateway, before.token) != (gateway, token):
            self.trigger_event(MethodRemoved, method=method, gateway=before.gateway, token=before.token)
        saved = replace(asked, token=token)
        self.trigger_event(
            MethodSaved,
            method=method,
            gateway=gateway,
            token=token,
            brand=saved.brand,
            last_four=saved.last_four,
            expires=saved.expires,
        )
        if preferred and self.preferred is None:
            self.trigger_event(MethodPreferred, method=method)

    def remove(self, method: UUID) -> None:
        if kept := self.kept.get(method):
            self.trigger_event(MethodRemoved, method=method, gateway=kept.gateway, token=kept.token)

    def prefer(self, method: UUID) -> None:
        """Use it unless another one is named."""
        self.found(method)
        if self.preferred != method:
            self.trigger_event(MethodPreferred, method=method)

    def forget(self) -> None:
        """The customer is erased: nothing is kept, here or at a gateway."""
        if not self.forgotten:
            for method in list(self.kept):
                self.remove(method)
            self.trigger_event(MethodsForgotten)

    def detached(self, gateway: str, token: str) -> None:
        """The gateway has forgotten it."""
        if (gateway, token) in self.leaving:
            self.trigger_event(Detached, gateway=gateway, token=token)

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

    def _is_free(self, method: UUID, gateway: str, token: str) -> None:
        others = {(one.gateway, one.token) for id, one in self.kept.items() if id != method}
        require((gateway, token) not in others, "it is saved already, under another id")
        require((gateway, token) not in self.leaving, "the gateway is about to forget it: save it again in a moment")

    def check(self) -> None:
        tokens = {(one.gateway, one.token) for one in self.kept.values()}
        assert self.preferred is None or self.preferred in self.kept
        assert len(tokens) == len(self.kept) <= METHODS_MAX and len(self.asked) <= ASKED_MAX
        assert not tokens & self.leaving and {gateway for gateway, _ in self.leaving} <= self.gateways
        assert not (self.forgotten and self.kept)
