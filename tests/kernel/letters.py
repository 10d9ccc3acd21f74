"""A toy domain with a past: letters whose events were written under three generations of their schema, and their read models.

| event | at first | then | today |
| --- | --- | --- | --- |
| `Written` | sender, words, memo | `urgent` added, `memo` removed | `words` is called `length` |
| `Stamped` | price | | is called `Franked`, `price` `postage`; `currency` added |
| `Sent` | by air or sea | | also by `rail` |
| `Returned` | why | | `why` may be left out |

`FIRST`, `SECOND` and `TODAY` are what wrote, each under the schema of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from enum import StrEnum
from random import Random
from typing import Any, Literal
from uuid import UUID

import schemas
from aggregates.kernel import Aggregate, Created, Event, Recorded, event, require
from aggregates.kernel.event import EPOCH
from aggregates.kernel.wire import Row
from projections.kernel import Change, ClickTable, RedisTable, Table, project

DOMAIN = "letter"
UUID_ = {"type": "string", "logicalType": "uuid"}


def _record(name: str, /, *, was: str = "", **fields: Any) -> dict[str, Any]:
    """A field is its type, or a dict with the rest of its definition."""
    named = [{"name": n} | (f if isinstance(f, dict) and "default" in f else {"type": f}) for n, f in fields.items()]
    for one in named:
        if one["name"] in WAS:
            one["aliases"] = [WAS[one["name"]]]
    return {"type": "record", "name": name, "fields": named} | ({"aliases": [was]} if was else {})


def _way(*symbols: str) -> dict[str, Any]:
    return {"type": "enum", "name": "Way", "symbols": list(symbols)}


WAS: dict[str, str] = {"length": "words", "postage": "price"}
GENERATIONS: list[list[dict[str, Any]]] = [
    [
        _record("Written", sender=UUID_, words="long", memo="string"),
        _record("Stamped", price="long"),
        _record("Sent", way=_way("air", "sea")),
        _record("Returned", why="string"),
    ],
    [
        _record("Written", sender=UUID_, words="long", urgent={"type": "boolean", "default": False}),
        _record("Stamped", price="long"),
        _record("Sent", way=_way("air", "sea")),
        _record("Returned", why="string"),
    ],
    [
        _record("Written", sender=UUID_, length="long", urgent={"type": "boolean", "default": False}),
        _record("Franked", was="Stamped", postage="long", currency={"type": "string", "default": "EUR"}),
        _record("Sent", way=_way("rail", "sea", "air")),
        _record("Returned", why={"type": ["null", "string"], "default": None}),
    ],
]
Writes = Mapping[str, Callable[[Mapping[str, Any]], bytes]]


def _generation(number: int, fields: Mapping[str, Mapping[str, Any]]) -> Writes:
    """What the code of that time encoded with."""
    schemas.define(DOMAIN, GENERATIONS[number], history=GENERATIONS[:number])
    return {name: schemas.bind(DOMAIN, name, types).encode for name, types in fields.items()}


_SINCE_FIRST: dict[str, dict[str, Any]] = {
    "Stamped": {"price": int},
    "Sent": {"way": Literal["air", "sea"]},
    "Returned": {"why": str},
}
FIRST = _generation(0, {"Written": {"sender": UUID, "words": int, "memo": str}, **_SINCE_FIRST})
SECOND = _generation(1, {"Written": {"sender": UUID, "words": int, "urgent": bool}, **_SINCE_FIRST})
schemas.define(DOMAIN, GENERATIONS[2], history=GENERATIONS[:2])


class Way(StrEnum):
    AIR = "air"
    SEA = "sea"
    RAIL = "rail"


class Written(Created):
    sender: UUID
    length: int
    urgent: bool


class Franked(Event):
    postage: int
    currency: str

    def apply(self, letter: Letter) -> None:
        letter.paid[self.currency] = letter.paid.get(self.currency, 0) + self.postage


class Sent(Event):
    way: Way

    def apply(self, letter: Letter) -> None:
        letter.ways.append(self.way)


class Returned(Event):
    why: str | None

    def apply(self, letter: Letter) -> None:
        letter.returned.append(self.why)


TODAY: Writes = {cls.__name__: cls.binding.encode for cls in (Written, Franked, Sent, Returned)}


class Letter(Aggregate):
    snapshot_every = 4

    @event(Written)
    def __init__(self, sender: UUID, length: int, urgent: bool) -> None:
        self.sender, self.length, self.urgent = sender, length, urgent
        self.paid: dict[str, int] = {}
        self.ways: list[Way] = []
        self.returned: list[str | None] = []

    def frank(self, postage: int, currency: str) -> None:
        self.trigger_event(Franked, postage=postage, currency=currency)

    def send(self, way: Way) -> None:
        require(len(self.ways) < len(self.paid), "without postage it stays here")
        self.trigger_event(Sent, way=way)

    def turn_back(self, why: str | None) -> None:
        self.trigger_event(Returned, why=why)


letters = Table("letters", key="id", id=UUID, sender=UUID, length=int, urgent=bool, version=int, postage=int)
routes = RedisTable("routes", key="id", id=UUID, sent=int, last=Way | None, paid=dict[str, int])
postages = ClickTable("postages", order_by=("letter",), letter=UUID, postage=int, currency=str, kind=str)


@project
def written(e: Written) -> list[Change]:
    return [
        letters.put(e.id, sender=e.sender, length=e.length, urgent=e.urgent, version=e.version),
        routes.put(e.id, last=None),
    ]


@project
def franked(r: Recorded[Franked]) -> list[Change]:
    e = r.event
    return [
        letters.add(e.id, postage=e.postage),
        letters.put(e.id, version=e.version),
        routes.add_item(e.id, "paid", e.currency, e.postage),
        postages.row(letter=e.id, postage=e.postage, currency=e.currency, kind=e.type),
    ]


@project
def sent(e: Sent) -> list[Change]:
    return [letters.put(e.id, version=e.version), routes.put(e.id, last=e.way), routes.add(e.id, sent=1)]


@project
def returned(e: Returned) -> list[Change]:
    return [letters.put(e.id, version=e.version)]


def past(letters_: int, seed: int) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Rows of three generations of writers, one after the other, on the same letters; each with what it means today."""
    dice = Random(seed)
    ids = [UUID(int=dice.getrandbits(128), version=4) for _ in range(letters_)]
    versions = dict.fromkeys(ids, 0)
    number = 0
    for generation, writes in enumerate((FIRST, SECOND, TODAY)):
        for id in ids[: letters_ * (generation + 1) // 3]:
            kinds = ["Stamped", "Sent", "Returned"] if generation < 2 else ["Franked", "Sent", "Returned"]
            chosen = dice.choices(kinds, k=dice.randrange(1, 4))
            for kind in [*(["Written"] if versions[id] == 0 else []), *chosen]:
                values, means = _values(dice, generation, kind)
                number, versions[id] = number + 1, versions[id] + 1
                at = EPOCH + timedelta(days=20_000, seconds=number)
                event_id = UUID(int=dice.getrandbits(128), version=4)
                body = writes[kind](values)
                yield Row(0, id, versions[id], f"{DOMAIN}.{kind}", body, event_id, at, "past", None, "user:test"), means


def _values(dice: Random, generation: int, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields as the generation's writer has them, the same as today's event)."""
    amount = dice.randrange(1, 1_000)
    match kind:
        case "Written":
            sender, urgent = UUID(int=dice.getrandbits(128), version=4), generation > 0 and dice.random() < 0.5
            today = {"sender": sender, "length": amount, "urgent": urgent}
            if generation == 0:
                return {"sender": sender, "words": amount, "memo": "of old"}, today
            return (today if generation == 2 else {"sender": sender, "words": amount, "urgent": urgent}), today
        case "Stamped":
            return {"price": amount}, {"postage": amount, "currency": "EUR"}
        case "Franked":
            both = {"postage": amount, "currency": dice.choice(["EUR", "JPY"])}
            return both, both
        case "Sent":
            way = dice.choice(list(Way) if generation == 2 else [Way.AIR, Way.SEA])
            return {"way": way if generation == 2 else way.value}, {"way": way}
        case _:
            why = None if generation == 2 and dice.random() < 0.5 else "nobody there"
            return {"why": why}, {"why": why}
