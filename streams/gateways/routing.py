"""Which gateways may take a payment, and in which order they are asked: declarative rules out of the settings, and pure.

    TITAN_GATEWAYS={"stripe": {"takes": ["pm_"], "fee_bp": 140, "fee_fixed": {"EUR": 25}},
                    "adyen": {"takes": ["pm_"], "currencies": ["EUR", "GBP"], "amounts": {"EUR": [100, 500000]}, "fee_bp": 120}}
    TITAN_ROUTES=[{"currencies": ["EUR"], "countries": ["DE", "AT"], "gateways": ["adyen", "stripe"]},
                  {"gateways": ["stripe", "adyen"], "by": "cost"}]

The first rule that fits a payment says which gateways, the terms of each whether it takes the payment at all. Without rules all
gateways are asked, the cheapest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aggregates.kernel import Money
from aggregates.kernel.currency import digits

NAME = "[a-z][a-z0-9]{0,19}"  # of a gateway, as in the path of its webhooks


class Rules(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    currencies: frozenset[str] | None = Field(None, description="only these")
    countries: frozenset[str] | None = Field(None, description="only buyers in these; a country not known is in none")

    @model_validator(mode="after")
    def _known(self) -> Rules:
        for currency in self.currencies or ():
            digits(currency)  # raises for what is no currency
        for country in self.countries or ():
            if not (len(country) == 2 and country.isascii() and country.isupper()):
                raise ValueError(f"{country!r} is no ISO 3166-1 alpha-2 country")
        return self

    def fits(self, amount: Money, country: str | None) -> bool:
        return (self.currencies is None or amount.currency in self.currencies) and (
            self.countries is None or country in self.countries
        )


class Terms(Rules):
    """What one gateway takes, and what it costs. Two with the same adapter are two accounts at one provider."""

    adapter: str | None = Field(None, pattern=f"^{NAME}$", description="module of streams.gateways; the same name")
    takes: tuple[str, ...] = Field(
        ("",), description="how the tokens begin that it knows; those of a shared vault, any"
    )
    amounts: dict[str, tuple[int, int]] = Field({}, description="least and most by currency, minor units")
    fee_bp: int = Field(0, ge=0, le=10_000, description="of the amount, basis points")
    fee_fixed: dict[str, int] = Field({}, description="for each payment beside that, by currency, minor units")
    settles_days: int | None = Field(
        None, ge=0, le=30, description="until a capture or refund is in its reports, at most; as usual for the adapter"
    )
    set: dict[str, Any] = Field({}, description="settings that are others for this one, as its URL and key")

    def takes_it(self, amount: Money, country: str | None, method: str) -> bool:
        least, most = self.amounts.get(amount.currency, (0, amount.amount))
        return self.fits(amount, country) and self.knows(method) and least <= amount.amount <= most

    def knows(self, method: str) -> bool:
        """Whether a token is one of its vault: another vendor's is never sent to it."""
        return method.startswith(self.takes)

    def cost(self, amount: Money) -> int:
        """Minor units, rounded half up."""
        return (amount.amount * self.fee_bp + 5_000) // 10_000 + self.fee_fixed.get(amount.currency, 0)


class Rule(Rules):
    """One line of TITAN_ROUTES. Bounds of the amount are in minor units, so they need the currencies that they are meant in."""

    least: int | None = Field(None, ge=0)
    most: int | None = Field(None, ge=0)
    gateways: tuple[str, ...] = Field(min_length=1)
    by: Literal["order", "cost"] = Field("order", description="the order given, or the cheapest first")

    @model_validator(mode="after")
    def _bounded(self) -> Rule:
        if (self.least, self.most) != (None, None) and not self.currencies:
            raise ValueError("least and most need currencies: 1000 is ten euro, and a thousand yen")
        return self

    def fits(self, amount: Money, country: str | None) -> bool:
        least, most = self.least or 0, amount.amount if self.most is None else self.most
        return super().fits(amount, country) and least <= amount.amount <= most


@dataclass(frozen=True)
class Ranking:
    """Gateways that may take a payment, the first to be asked first, and why in that order."""

    gateways: Sequence[str]
    why: str


def rank(
    gateways: Mapping[str, Terms], rules: Sequence[Rule], amount: Money, country: str | None, method: str
) -> Ranking:
    """The gateways for a payment by the first rule that fits it; none when no rule does, or no gateway takes it."""
    names: Sequence[str] = tuple(gateways)
    by, why = "cost", "no rules"
    if rules:
        number, rule = next(((n, one) for n, one in enumerate(rules, 1) if one.fits(amount, country)), (0, None))
        if rule is None:
            return Ranking((), "no rule fits")
        names, by, why = rule.gateways, rule.by, f"rule {number}"
    taking = [name for name in names if gateways[name].takes_it(amount, country, method)]
    if by == "cost":
        taking.sort(key=lambda name: gateways[name].cost(amount))  # stable: equal ones as they are given
        why += ", by cost " + " ".join(f"{name} {gateways[name].cost(amount)}" for name in taking)
    return Ranking(taking, why)
