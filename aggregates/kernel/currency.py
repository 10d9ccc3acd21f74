"""Currencies of ISO 4217 and their minor units: what an integer amount of each one counts."""

from __future__ import annotations

from decimal import Decimal

from aggregates.kernel.errors import Invalid

NO_DIGITS = frozenset(
    ["BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"]
)
THREE_DIGITS = frozenset(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"])
_TWO = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC "
    "CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR "
    "JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD "
    "NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN "
    "SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG"
)
TWO_DIGITS = frozenset(_TWO.split())
DIGITS: dict[str, int] = dict.fromkeys(NO_DIGITS, 0) | dict.fromkeys(TWO_DIGITS, 2) | dict.fromkeys(THREE_DIGITS, 3)
"""Decimal places of each currency's minor unit."""


def digits(currency: str) -> int:
    """Decimal places: 2 for EUR, 0 for JPY, 3 for KWD. Raises `Invalid` for what is not a currency of ISO 4217."""
    if currency not in DIGITS:
        raise Invalid(f"{currency[:20]!r} is not a currency of ISO 4217")
    return DIGITS[currency]


def minor(amount: str, currency: str) -> int:
    """Minor units of a decimal amount: `minor("19.99", "EUR")` is 1999. Raises `Invalid` for fractions of the minor unit."""
    try:
        scaled = Decimal(amount).scaleb(digits(currency))
    except ArithmeticError as error:
        raise Invalid(f"{amount[:20]!r} is not an amount") from error
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise Invalid(f"{amount[:20]!r} is not a whole number of {currency}'s minor units")
    return int(scaled)


def decimal(amount: int, currency: str) -> str:
    """The amount as people write it: `decimal(1999, "EUR")` is "19.99", `decimal(1999, "JPY")` is "1999"."""
    return str(Decimal(amount).scaleb(-digits(currency)))
