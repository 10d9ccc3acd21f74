"""What can happen to a wallet. Amounts are minor units of its currency; `balance` is what can be spent after the event."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from aggregates.kernel import Cancel, Created, Event, Timer
from aggregates.kernel.ledger import OUTSIDE
from aggregates.wallet.parts import AVAILABLE, PEERS, Escrow, Source, escrowed, leaving
from schemas import Sealed

if TYPE_CHECKING:
    from aggregates.wallet import Wallet


class Opened(Created):
    owner: UUID
    currency: str


class _Moved(Event):
    """Money went from one account to another."""

    amount: int
    balance: int

    def way(self) -> tuple[str, str]:
        raise NotImplementedError

    def apply(self, wallet: Wallet) -> None:
        wallet.ledger.move(self.amount, *self.way())


class Deposited(_Moved):
    """Money came in from outside. `reference`: its cause, a top-up, a refund, or the command that gave it."""

    source: Source
    reference: UUID

    def way(self) -> tuple[str, str]:
        return OUTSIDE, AVAILABLE

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        wallet.deposits.take(self.reference, self.amount, self.at)


class TopUpReversed(_Moved):
    """The bank has taken a top-up's money from us again: so do we from the wallet, as far as it is there. `owed`: the rest."""

    capture: UUID
    topup: UUID
    owed: int

    def way(self) -> tuple[str, str]:
        return AVAILABLE, OUTSIDE

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        wallet.reversals.take(self.capture, self.amount + self.owed, self.at)


class Sent(_Moved):
    transfer: UUID
    recipient: UUID  # a wallet

    def way(self) -> tuple[str, str]:
        return AVAILABLE, PEERS


class Received(_Moved):
    """`transfer` of another wallet's owner, or the escrow that was captured or refunded."""

    transfer: UUID
    sender: UUID  # a wallet

    def way(self) -> tuple[str, str]:
        return PEERS, AVAILABLE


class WithdrawalRequested(_Moved):
    """Money is to go back to where it came from: the payment of a top-up."""

    withdrawal: UUID
    payment: UUID

    def way(self) -> tuple[str, str]:
        return AVAILABLE, leaving(self.withdrawal)

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        wallet.withdrawals[self.withdrawal] = self.amount


class Withdrawn(_Moved):
    withdrawal: UUID

    def way(self) -> tuple[str, str]:
        return leaving(self.withdrawal), OUTSIDE

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        del wallet.withdrawals[self.withdrawal]


class WithdrawalFailed(_Moved):
    """The money could not go out, and can be spent again."""

    withdrawal: UUID
    reason: str

    def way(self) -> tuple[str, str]:
        return leaving(self.withdrawal), AVAILABLE

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        del wallet.withdrawals[self.withdrawal]


class Held(_Moved):
    escrow: UUID
    expires_at: datetime | None

    def way(self) -> tuple[str, str]:
        return AVAILABLE, escrowed(self.escrow)

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        wallet.escrows[self.escrow] = Escrow(self.amount, self.expires_at)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [_expiry(self.escrow, self.expires_at)] if self.expires_at else []


class _Left(_Moved):
    """Money left an escrow, which ends when nothing is `left`."""

    escrow: UUID
    left: int

    def timers(self) -> Iterable[Timer | Cancel]:
        return [] if self.left else [Cancel(_timer(self.escrow))]


class Released(_Left):
    """Held money can be spent again. `amount` 0: nothing was held yet, the escrow is only closed."""

    def way(self) -> tuple[str, str]:
        return escrowed(self.escrow), AVAILABLE

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        if not self.left:
            wallet.close(self.escrow, "released", self.at)


class Captured(_Left):
    """Held money went to the payee's wallet."""

    payee: UUID

    def way(self) -> tuple[str, str]:
        return escrowed(self.escrow), PEERS

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        captured = wallet.escrows[self.escrow].captured
        captured[self.payee] = captured.get(self.payee, 0) + self.amount
        if not self.left:
            wallet.close(self.escrow, "captured", self.at)


class Spent(_Left):
    """Held money paid for an order of the shop's own: it left the wallets."""

    order: UUID

    def way(self) -> tuple[str, str]:
        return escrowed(self.escrow), OUTSIDE

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        wallet.close(self.escrow, "spent", self.at)


class Expired(_Left):
    """The time of an escrow was over: what was left of it can be spent again."""

    def way(self) -> tuple[str, str]:
        return escrowed(self.escrow), AVAILABLE

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        wallet.close(self.escrow, "expired", self.at)


class Refunded(_Moved):
    """A payee gave captured money back."""

    escrow: UUID
    payee: UUID

    def way(self) -> tuple[str, str]:
        return PEERS, AVAILABLE

    def apply(self, wallet: Wallet) -> None:
        super().apply(wallet)
        found = wallet.escrow(self.escrow)
        if found is not None:
            found.captured[self.payee] -= self.amount


class Frozen(Event):
    """A dispute: what is held moves nowhere until it is settled."""

    escrow: UUID
    reason: str
    because: Sealed | None  # what somebody typed, sealed for the owner; older events have it as `reason`

    def apply(self, wallet: Wallet) -> None:
        wallet.escrows[self.escrow].frozen = True

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(_timer(self.escrow))]


class Unfrozen(Event):
    escrow: UUID
    expires_at: datetime | None

    def apply(self, wallet: Wallet) -> None:
        escrow = wallet.escrows[self.escrow]
        escrow.frozen, escrow.expires_at = False, self.expires_at

    def timers(self) -> Iterable[Timer | Cancel]:
        return [_expiry(self.escrow, self.expires_at)] if self.expires_at else []


def _timer(escrow: UUID) -> str:
    return f"escrow:{escrow}"


def _expiry(escrow: UUID, at: datetime) -> Timer:
    from aggregates.wallet import Wallet

    return Timer(_timer(escrow), at, Wallet.expire, (str(escrow),))
