"""The codec: every type there and back, byte for byte what fastavro writes, and what is refused in which words."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from io import BytesIO
from time import process_time
from timeit import repeat
from types import GenericAlias
from typing import Annotated, Any, Literal, NamedTuple, NewType, get_origin
from uuid import UUID, uuid4

import pytest
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schemas
from schemas import (
    Address,
    Invalid,
    Money,
    SchemaError,
    SchemaMismatch,
    Sealed,
    Unlocked,
    Unreadable,
    bind,
    codec,
    decode,
    define,
)

UUID_TYPE = {"type": "string", "logicalType": "uuid"}
TIME = {"type": "long", "logicalType": "timestamp-micros"}
DATE = {"type": "int", "logicalType": "date"}
Sku = NewType("Sku", str)


class Channel(StrEnum):
    WEB = "web"
    SHOP = "in_shop"


class Level(IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Line:
    sku: Sku
    price: Money
    tags: tuple[str, ...]
    gift: str | None


POINT = {"type": "record", "name": "Point", "fields": [{"name": n, "type": "double"} for n in "xy"]}
CHANNEL = {"type": "enum", "name": "Channel", "symbols": ["web", "in_shop"]}
LINE = {
    "type": "record",
    "name": "Line",
    "fields": [
        {"name": "sku", "type": "string"},
        {"name": "price", "type": "titan.common.Money"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "gift", "type": ["null", "string"], "default": None},
    ],
}
SEALED = "sealed:1:00000000-0000-0000-0000-000000000000:AAAA"

longs = st.integers(-(2**63), 2**63 - 1)
moments = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))
money = st.builds(Money, longs, st.text())
sealed = st.text().map(lambda tail: Sealed(f"sealed:1:{tail}"))
lines = st.builds(Line, st.text().map(Sku), money, st.lists(st.text()).map(tuple), st.none() | st.text())

Kind = tuple[Any, Any, st.SearchStrategy[Any]]  # Python type, Avro type, values
SCALARS: list[Kind] = [
    (str, "string", st.text()),
    (Sku, "string", st.text()),
    (Annotated[int, "cents"], "long", longs),
    (bool, "boolean", st.booleans()),
    (float, "double", st.floats(allow_nan=False)),
    (UUID, UUID_TYPE, st.uuids()),
    (datetime, TIME, moments),
    (date, DATE, st.dates()),
    (Channel, CHANNEL, st.sampled_from(Channel)),
    (Literal["web", "in_shop"], CHANNEL, st.sampled_from(["web", "in_shop"])),
    (Sealed, {"type": "string", "pii": True}, sealed),
    (Money, "titan.common.Money", money),
    (Address, "titan.common.Address", st.builds(Address, sealed, sealed, sealed, sealed, st.text())),
    (Point, POINT, st.builds(Point, st.floats(allow_nan=False), st.floats(allow_nan=False))),
    (Line, LINE, lines),
]


def grown(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    def optional(kind: Kind) -> Kind:
        python, avro, values = kind
        return kind if isinstance(avro, list) else (python | None, ["null", avro], st.none() | values)

    def many(kind: Kind) -> Kind:
        python, avro, values = kind
        return GenericAlias(list, (python,)), {"type": "array", "items": avro}, st.lists(values, max_size=3)

    def several(kind: Kind) -> Kind:
        python, avro, values = many(kind)
        return GenericAlias(tuple, (*python.__args__, ...)), avro, values.map(tuple)

    def named(kind: Kind) -> Kind:
        python, avro, values = kind
        of: Kind = (
            GenericAlias(dict, (str, python)),
            {"type": "map", "values": avro},
            st.dictionaries(st.text(), values, max_size=3),
        )
        return of

    return st.one_of([inner.map(way) for way in (optional, many, several, named)])


kinds = st.recursive(st.sampled_from(SCALARS), grown, max_leaves=3)


def raw(value: Any) -> Any:
    """The value as fastavro's own writer takes it."""
    if is_dataclass(value) and not isinstance(value, type):
        return raw(asdict(value))
    if isinstance(value, Point):
        return value._asdict()
    if isinstance(value, dict):
        return {key: raw(item) for key, item in value.items()}
    return [raw(item) for item in value] if isinstance(value, (list, tuple)) else value


def event(name: str, **fields: Any) -> dict[str, Any]:
    avro = [
        {"name": field, "type": type_} | ({"default": None} if isinstance(type_, list) else {})
        for field, type_ in fields.items()
    ]
    return {"type": "record", "name": name, "fields": avro}


OTHER = event("Other", n="long")


def schema_of(name: str) -> Any:
    """An event of the toy domain as others get it, with fastavro's own parser."""
    entry = next(e for e in codec._domains["toy"].known.values() if e.subject == f"titan.toy-titan.toy.{name}")
    return parse_schema(json.loads(entry.text))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_type_comes_back_and_is_written_as_fastavro_writes_it(data: st.DataObject) -> None:
    python, avro, values = data.draw(kinds, "type")
    define("toy", [OTHER, event("Happened", before="long", what=avro, after="string")])
    binding = bind("toy", "Happened", {"before": int, "what": python, "after": str})
    event_ = {"before": -1, "what": data.draw(values, "value"), "after": "é"}

    encoded = binding.encode(event_)
    name, decoded = decode("toy", encoded)

    assert (name, decoded) == ("Happened", event_)
    assert type(decoded["what"]) is type(event_["what"])
    bare = BytesIO()
    schemaless_writer(bare, schema_of("Happened"), {key: raw(value) for key, value in event_.items()})
    assert encoded[5:] == bare.getvalue()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_an_older_schema_reads_into_the_same_values(data: st.DataObject) -> None:
    """The way through resolution gives what the straight way gives."""
    python, avro, values = data.draw(kinds, "type")
    old = [event("Happened", what=avro, gone="long"), OTHER]
    define("toy", old)
    value = data.draw(values, "value")
    written = bind("toy", "Happened", {"what": python, "gone": int}).encode({"what": value, "gone": 1})

    define("toy", [OTHER, event("Happened", added=["null", UUID_TYPE], what=avro)], history=[old])
    bind("toy", "Happened", {"what": python, "added": UUID | None})

    name, decoded = decode("toy", written)
    assert (name, decoded) == ("Happened", {"what": value, "added": None})
    assert type(decoded["what"]) is type(value)


def one(python: Any, avro: Any) -> schemas.Binding:
    define("toy", [event("Happened", what=avro)])
    return bind("toy", "Happened", {"what": python})


MANY = {"type": "array", "items": "long"}


@pytest.mark.parametrize(
    ("python", "avro", "value", "said"),
    [
        (int, "long", 2**63, "what is 9223372036854775808, outside Avro's long (64 bits)"),
        (int, "long", -(2**63) - 1, "what is -9223372036854775809, outside Avro's long (64 bits)"),
        (int, "long", 10**30, "outside Avro's long"),
        (int, "long", Decimal("9.99"), "what is Decimal('9.99'), not an int"),
        (int, "long", 1.0, "what is 1.0, not an int"),
        (int, "long", True, "what is True, not an int"),
        (int, "long", None, "what is None, not an int"),
        (bool, "boolean", 1, "what is 1, not a bool"),
        (float, "double", "1.5", "what is '1.5', not a float"),
        (float, "double", True, "what is True, not a float"),
        (str, "string", b"bytes", "what is b'bytes', not a str"),
        (str, "string", "\ud800", "not valid Unicode"),
        (UUID, UUID_TYPE, "0b9ff4ef-9f5b-4a6b-9d0b-1a2b3c4d5e6f", "not a UUID"),
        (datetime, TIME, datetime(2026, 1, 1), "a time without a time zone"),
        (datetime, TIME, date(2026, 1, 1), "not a datetime"),
        (date, DATE, "2026-01-01", "not a date"),
        (Channel, CHANNEL, "fax", "what is 'fax', not one of ['web', 'in_shop']"),
        (list[int], MANY, [1, 2, "3"], "what[2] is '3', not an int"),
        (list[str], {"type": "array", "items": "string"}, "abc", "what is 'abc', not a list"),
        (list[str], {"type": "array", "items": "string"}, "", "what is '', not a list"),
        (tuple[int, ...], MANY, {1}, "what is {1}, not a tuple"),
        (dict[str, int], {"type": "map", "values": "long"}, {"a": 2**64}, "what['a'] is 18446744073709551616, outside"),
        (dict[str, int], {"type": "map", "values": "long"}, {1: 1}, "what has the key 1, not a str"),
        (dict[str, int], {"type": "map", "values": "long"}, [], "what is [], not a dict"),
        (Money, "titan.common.Money", Money(2**70, "EUR"), "what.amount is 1180591620717411303424, outside"),
        (Money, "titan.common.Money", {"amount": 1, "currency": "EUR"}, "not a Money"),
        (int | None, ["null", "long"], "x", "what is 'x', not an int"),
        (Sealed, {"type": "string", "pii": True}, "Ada Lovelace", "what is personal data that was not sealed"),
    ],
)
def test_a_value_that_its_field_cannot_hold_is_named(python: Any, avro: Any, value: Any, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        one(python, avro).encode({"what": value})
    assert str(caught.value).startswith("toy.Happened cannot be written: ")
    assert said in str(caught.value)
    assert "Ada" not in str(caught.value)


def test_the_limits_of_a_long_are_written() -> None:
    binding = one(int, "long")
    for value in (2**63 - 1, -(2**63)):
        assert decode("toy", binding.encode({"what": value}))[1] == {"what": value}


def test_close_relatives_are_taken_for_what_they_are() -> None:
    assert decode("toy", one(int, "long").encode({"what": Level.LOW}))[1] == {"what": 1}
    assert decode("toy", one(str, "string").encode({"what": Channel.WEB}))[1] == {"what": "web"}
    what = decode("toy", one(float, "double").encode({"what": 3}))[1]["what"]
    assert (what, type(what)) == (3.0, float)
    assert math.isnan(decode("toy", one(float, "double").encode({"what": math.nan}))[1]["what"])
    assert decode("toy", one(list[int], MANY).encode({"what": (1, 2)}))[1] == {"what": [1, 2]}


def test_a_missing_field_is_named_and_others_are_left_out() -> None:
    binding = one(int, "long")
    with pytest.raises(Invalid, match="what is missing"):
        binding.encode({})
    assert decode("toy", binding.encode({"what": 1, "version": 3}))[1] == {"what": 1}


def test_a_uuid_is_whole() -> None:
    given_ = uuid4()
    what = decode("toy", one(UUID, UUID_TYPE).encode({"what": given_}))[1]["what"]
    assert (what, hash(what), what.is_safe, str(what)) == (given_, hash(given_), given_.is_safe, str(given_))


@pytest.mark.parametrize(
    ("python", "avro", "both"),
    [
        (str, "long", ["str in Python", "long in the schema"]),
        (int, "double", ["int in Python", "double in the schema"]),
        (str, UUID_TYPE, ["str in Python", '"logicalType":"uuid"']),
        (str, {"type": "string", "pii": True}, ["str in Python", '"pii":true']),
        (Sealed, "string", ["Sealed in Python", "string in the schema"]),
        (int | None, "long", ["int | None in Python", "long in the schema"]),
        (int, ["null", "long"], ["int in Python", '["null","long"] in the schema']),
        (int | str | None, ["null", "long"], ["int | str | None in Python"]),
        (
            Channel,
            CHANNEL | {"symbols": ["web"]},
            ["Channel has ['in_shop', 'web'] in Python", "['web'] in the schema"],
        ),
        (Money, POINT, ["Money in Python", "the record titan.toy.Point in the schema"]),
        (Point, POINT | {"fields": POINT["fields"][:1]}, [".y is in Python only"]),
        (Line, LINE | {"fields": [*LINE["fields"], {"name": "z", "type": "long"}]}, [".z is in the schema only"]),
        (Decimal, "string", ["Decimal in Python", "string in the schema"]),
        (list[int], {"type": "array", "items": "string"}, ["int in Python, string in the schema"]),
        (list[int], "long", ["list[int] in Python, long in the schema"]),
        (dict[int, int], {"type": "map", "values": "long"}, ["dict[int, int] in Python"]),
    ],
)
def test_a_signature_and_its_record_that_disagree_are_both_named(python: Any, avro: Any, both: list[str]) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        one(python, avro)
    for side in ["toy.Happened and schemas/avro/toy.avsc disagree", "what", *both]:
        assert side in str(caught.value)


def test_all_differences_are_told_at_once() -> None:
    define("toy", [event("Happened", a="long", b="string", c=["null", "long"])])
    with pytest.raises(SchemaMismatch) as caught:
        bind("toy", "Happened", {"a": str, "d": int, "c": int | None})
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "a: str in Python, long in the schema",
        "b is in the schema only",
        "d is in Python only",
    ]


def test_an_optional_field_needs_null_as_its_default() -> None:
    define("toy", [{"type": "record", "name": "Happened", "fields": [{"name": "what", "type": ["null", "long"]}]}])
    with pytest.raises(SchemaMismatch, match='"default": null'):
        bind("toy", "Happened", {"what": int | None})


def test_an_event_that_the_schema_lacks_is_refused() -> None:
    define("toy", [OTHER])
    with pytest.raises(SchemaMismatch, match="Happened is in Python only; the schema has Other"):
        bind("toy", "Happened", {})


def test_a_domain_without_a_file_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"nosuch\.avsc is missing"):
        bind("nosuch", "Happened", {})


def test_an_unlocked_domain_binds_and_does_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    define("toy", [event("Happened", what="long")])
    monkeypatch.setattr(codec._domains["toy"], "writers", {})
    with pytest.raises(Unlocked, match="titan schemas lock"):
        bind("toy", "Happened", {"what": int}).encode({"what": 1})


@pytest.mark.parametrize("cut", range(60))
def test_cut_off_bytes_are_unreadable(cut: int) -> None:
    define("toy", [OTHER, event("Happened", id=UUID_TYPE, many=MANY, maybe=["null", "string"])])
    binding = bind("toy", "Happened", {"id": UUID, "many": list[int], "maybe": str | None})
    data = binding.encode({"id": uuid4(), "many": [1, 2, 300], "maybe": "text"})
    assert len(data) > cut or cut > 50
    if cut < len(data):
        with pytest.raises(Unreadable):
            decode("toy", data[:cut])


def test_other_bytes_are_unreadable_in_clear_words() -> None:
    data = one(int, "long").encode({"what": 1})
    for wrong, said in [
        (b"", "0 bytes"),
        (data[:4], "4 bytes"),
        (b'{"what": 1}', "don't start with 0"),
        (b"\0\0\0\0\x7f\2", "schema id 127 is not one of titan.toy's"),
        (data[:5], "cannot be read from 5 bytes"),
        (data + b"\0", f"ends at byte {len(data)} of {len(data) + 1}"),
    ]:
        with pytest.raises(Unreadable, match=said):
            decode("toy", wrong)


def test_an_event_that_nobody_bound_is_unreadable_until_it_is() -> None:
    data = one(int, "long").encode({"what": 1})
    define("toy", [event("Happened", what="long")])
    with pytest.raises(Unreadable, match="import the module"):
        decode("toy", data)
    bind("toy", "Happened", {"what": int})
    assert decode("toy", data) == ("Happened", {"what": 1})


def test_the_id_alone_tells_which_of_many_events_it_is() -> None:
    names = [f"E{n}" for n in range(200)]
    define("toy", [event(name, n="long") for name in names])
    data = {name: bind("toy", name, {"n": int}).encode({"n": n % 64}) for n, name in enumerate(names)}
    assert len({framed[:5] for framed in data.values()}) == 200
    assert {len(framed) for framed in data.values()} == {6}
    for _ in range(2):  # the second time from the cache
        for n, name in enumerate(names):
            assert decode("toy", data[name]) == (name, {"n": n % 64})


def test_an_event_without_fields_has_a_byte_for_those_who_want_one() -> None:
    """confluent-kafka's deserializer takes a message of 5 bytes for a mistake."""
    define("toy", [OTHER, event("Happened")])
    data = bind("toy", "Happened", {}).encode({"version": 1})
    assert schemaless_reader(BytesIO(data[5:]), schema_of("Happened"), None) == {"_empty": False}
    first, second = decode("toy", data), decode("toy", data)
    assert first == second == ("Happened", {})
    assert first[1] is not second[1]
    with pytest.raises(SchemaMismatch, match="what is in Python only"):
        bind("toy", "Happened", {"what": int})
    for wrong in (data[:5], data + b"\0"):
        with pytest.raises(Unreadable):
            decode("toy", wrong)


def test_fields_come_to_an_event_without_any_and_go_again() -> None:
    empty, full = (
        [event("Happened")],
        [{"type": "record", "name": "Happened", "fields": [{"name": "n", "type": "long", "default": 5}]}],
    )
    define("toy", empty)
    without = bind("toy", "Happened", {}).encode({})
    define("toy", full, history=[empty])
    with_ = bind("toy", "Happened", {"n": int}).encode({"n": 7})
    assert decode("toy", without) == ("Happened", {"n": 5})
    define("toy", empty, history=[empty, full])
    bind("toy", "Happened", {})
    assert decode("toy", with_) == decode("toy", without) == ("Happened", {})


def test_events_that_share_a_type_each_carry_it_whole() -> None:
    """Each event's schema must stand alone: readers get one, not the domain's file."""
    define("toy", [event("Happened", a=LINE, b="Line", c="titan.common.Money"), event("Other", line="Line")])
    line = Line(Sku("A"), Money(1, "EUR"), ("x",), None)
    happened = bind("toy", "Happened", {"a": Line, "b": Line, "c": Money}).encode(
        {"a": line, "b": line, "c": line.price}
    )
    other = bind("toy", "Other", {"line": Line}).encode({"line": line})
    assert schemaless_reader(BytesIO(other[5:]), schema_of("Other"), None) == {"line": raw(line)}
    read = schemaless_reader(BytesIO(happened[5:]), schema_of("Happened"), None)
    assert read == {"a": raw(line), "b": raw(line), "c": raw(line.price)}
    assert decode("toy", other) == ("Other", {"line": line})


def test_other_events_of_the_domain_change_nothing_on_the_wire() -> None:
    """An event's id and bytes are its own, in whatever company and order it stands."""
    alone = one(int, "long").encode({"what": 1})
    define("toy", [OTHER, event("Happened", what="long")], history=[[event("Other", n="string")]])
    assert bind("toy", "Happened", {"what": int}).encode({"what": 1}) == alone


def test_two_schemas_never_share_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "crc32", lambda data: 7)
    with pytest.raises(
        SchemaError, match=r"titan\.toy\.Happened gets the id \d+ of titan\.toy-titan\.toy\.Other: rename one"
    ):
        define("toy", [OTHER, event("Happened", what="long")])


def test_blocks_with_their_size_in_bytes_are_read() -> None:
    """Other writers of Avro may give an array in several blocks, each with its size."""
    data = one(list[int], MANY).encode({"what": []})[:-1]
    assert decode("toy", data + b"\x01\x02\x02" + b"\x02\x04" + b"\x00")[1] == {"what": [1, 2]}


def test_a_default_list_is_never_shared() -> None:
    old = [event("Happened", n="long")]
    define("toy", old)
    data = bind("toy", "Happened", {"n": int}).encode({"n": 1})
    tags = {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []}
    define("toy", [{"type": "record", "name": "Happened", "fields": [tags]}], history=[old])
    bind("toy", "Happened", {"tags": list[str]})
    decode("toy", data)[1]["tags"].append("mine")
    assert decode("toy", data)[1] == {"tags": []}


# Old generations, as bytes that were once written: they must decode for ever.
FIRST = [
    event("Placed", customer=UUID_TYPE, total="long", memo="string"),
    event("Noted", text="string"),
    event("Dropped", reason="string"),
]
SECOND = [
    {
        "type": "record",
        "name": "Placed",
        "fields": [
            {"name": "customer", "type": UUID_TYPE},
            {"name": "amount", "type": "long", "aliases": ["total"]},
            {"name": "currency", "type": "string", "default": "EUR"},
            {"name": "memo", "type": "string"},
        ],
    },
    *FIRST[1:],
]
TODAY = [
    {"type": "record", "name": "Cancelled", "aliases": ["Dropped"], "fields": [{"name": "reason", "type": "string"}]},
    {
        "type": "record",
        "name": "Placed",
        "fields": [
            {"name": "buyer", "type": UUID_TYPE, "aliases": ["customer"]},
            {"name": "currency", "type": "string", "default": "EUR"},
            {"name": "amount", "type": "double", "aliases": ["total"]},
            {"name": "channel", "type": CHANNEL, "default": "web"},
            {"name": "rate", "type": "double", "default": 1},
        ],
    },
]
ADA = UUID("0b9ff4ef-9f5b-4a6b-9d0b-1a2b3c4d5e6f")
GOLDEN = {
    "first": "0069dc19434830623966663465662d396635622d346136622d396430622d316132623363346435653666d00f086e6f7465",
    "noted": "0069352409046869",
    "dropped": "0070ef73dc086c617465",
    "second": "006264151b4830623966663465662d396635622d346136622d396430622d316132623363346435653666a01f0655534400",
}


def generations() -> dict[str, bytes]:
    """What each generation's own code wrote."""
    define("parcel", FIRST)
    placed = bind("parcel", "Placed", {"customer": UUID, "total": int, "memo": str})
    first = placed.encode({"customer": ADA, "total": 1000, "memo": "note"})
    noted = bind("parcel", "Noted", {"text": str}).encode({"text": "hi"})
    dropped = bind("parcel", "Dropped", {"reason": str}).encode({"reason": "late"})
    define("parcel", SECOND, history=[FIRST])
    placed = bind("parcel", "Placed", {"customer": UUID, "amount": int, "currency": str, "memo": str})
    second = placed.encode({"customer": ADA, "amount": 2000, "currency": "USD", "memo": ""})
    return {"first": first, "noted": noted, "dropped": dropped, "second": second}


def test_three_generations_decode_into_todays_events() -> None:
    written = {name: bytes.fromhex(data) for name, data in GOLDEN.items()}
    define("parcel", TODAY, history=[FIRST, SECOND])
    fields = {"buyer": UUID, "currency": str, "amount": float, "channel": Channel, "rate": float}
    placed = bind("parcel", "Placed", fields)
    bind("parcel", "Cancelled", {"reason": str})

    defaults = {"buyer": ADA, "channel": Channel.WEB, "rate": 1.0}
    for _ in range(2):  # the second time from the cache
        assert decode("parcel", written["first"]) == ("Placed", defaults | {"currency": "EUR", "amount": 1000.0})
        assert decode("parcel", written["second"]) == ("Placed", defaults | {"currency": "USD", "amount": 2000.0})
        assert decode("parcel", written["dropped"]) == ("Cancelled", {"reason": "late"})
    types = {name: type(value) for name, value in decode("parcel", written["first"])[1].items()}
    assert types == fields
    now = defaults | {"currency": "JPY", "amount": 0.5, "channel": Channel.SHOP, "rate": 2.0}
    assert decode("parcel", placed.encode(now)) == ("Placed", now)
    with pytest.raises(Unreadable, match=r"titan\.parcel\.Noted .* is gone from schemas/avro/parcel\.avsc"):
        decode("parcel", written["noted"])


def test_what_was_written_once_is_written_so_for_ever() -> None:
    assert {name: data.hex() for name, data in generations().items()} == GOLDEN


def test_it_is_faster_than_bare_fastavro() -> None:
    """The bare writer and reader of the same record, in the same run; 1.8 and 1.6 times."""
    fields = {"escrow": UUID_TYPE, "amount": "long", "currency": "string", "at": TIME, "reference": "string"}
    define("toy", [OTHER, event("Captured", **fields)])
    types = {"escrow": UUID, "amount": int, "currency": str, "at": datetime, "reference": str}
    binding = bind("toy", "Captured", types)
    values = {"escrow": ADA, "amount": 6000, "currency": "EUR", "at": datetime.now(UTC), "reference": "card"}
    data, schema = binding.encode(values), schema_of("Captured")

    def best(call: Any) -> float:
        return min(repeat(call, process_time, number=2000, repeat=7))

    assert best(lambda: binding.encode(values)) < best(lambda: schemaless_writer(BytesIO(), schema, values))
    body = data[5:]
    assert best(lambda: decode("toy", data)) < best(lambda: schemaless_reader(BytesIO(body), schema, None))


def test_the_shared_types_are_as_common_avsc_has_them() -> None:
    records = {record["name"]: record for record in json.loads((codec.AVRO / "common.avsc").read_text())}
    for cls in (Money, Address):
        assert [field["name"] for field in records[cls.__name__]["fields"]] == list(cls.__dataclass_fields__)
    assert get_origin(Sealed) is None
