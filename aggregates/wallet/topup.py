"""Top-up: real money comes into a wallet. It is a saga (`streams/wallet.py`): what is credited was captured before."""

from __future__ import annotations

from uuid import UUID, uuid5

from aggregates.kernel import Created, Money, NotFound, event, process, require
from aggregates.kernel.money import payable
from aggregates.kernel.process import Ending, Process, Progress
from aggregates.kernel.token import Way, payment_token


# What can happen. `apply` only records: it never refuses, so old events always load.
class Started(Created):
    wallet: UUID
    owner: UUID
    amount: Money
    method: str
    saved: UUID | None
    gateway: str
    country: str | None


class StepBegun(process.StepBegun): ...


class StepDone(process.StepDone): ...


class StepRefused(process.StepRefused): ...


class StepOverdue(process.StepOverdue): ...


class StepUndone(process.StepUndone): ...


class StepFailed(process.StepFailed): ...


class StepRetried(process.StepRetried): ...


class Finished(process.Finished): ...


# What is allowed.
class TopUp(Process):
    """`amount` is authorised and captured under `payment`, then credited.

    `method` is a token; of one that is `saved`, `gateway` is the only one that may take it.
    """

    @event(Started)
    def __init__(
        self,
        wallet: UUID,
        owner: UUID,
        amount: Money,
        method: str,
        saved: UUID | None,
        gateway: str,
        country: str | None,
    ) -> None:
        self.wallet, self.owner, self.amount, self.method = wallet, owner, amount, method
        self.saved, self.gateway, self.country = saved, gateway, country
        self.progress = Progress()

    @classmethod
    def start(cls, wallet: UUID, owner: UUID, amount: Money, way: Way, country: str | None = None) -> TopUp:
        """A top-up of a wallet by its owner's `way` to pay. The rules of routing may ask for the owner's `country`."""
        payable(amount)
        return cls(wallet, owner, amount, payment_token(way.token), way.saved, way.gateway, country)

    @property
    def payment(self) -> UUID:
        """The payment of this top-up."""
        return payment_of(self.id)

    @property
    def capture(self) -> UUID:
        """The one capture of that payment."""
        return uuid5(self.id, "capture")

    def returns_to(self, wallet: UUID) -> None:
        """Refuse a withdrawal to this top-up's payment, unless it brought money into that very wallet."""
        if self.wallet != wallet:
            raise NotFound(f"there is no topup {self.id}")
        require(self.progress.ended is Ending.DONE, "the top-up has brought no money in")


def payment_of(top_up: UUID) -> UUID:
    """The payment of a top-up: its id follows from the top-up's."""
    return uuid5(top_up, "payment")
