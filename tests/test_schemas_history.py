"""What may follow what, and the lock that remembers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas import HistoryBroken, SchemaError, Unlocked, Unreadable, bind, cli, codec, history
from schemas.compatible import defects, incompatible
from schemas.tree import canonical, expand

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of schemas with its own history, in place of ours."""
    (tmp_path / "common.avsc").write_text((codec.AVRO / "common.avsc").read_text())
    monkeypatch.setattr(codec, "AVRO", tmp_path)
    monkeypatch.setattr(history, "FILE", tmp_path / "history.jsonl")
    monkeypatch.setattr(codec, "_domains", {})
    monkeypatch.setattr(codec, "_readers", {})
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Check:
    def run(*argv: str) -> tuple[int, str]:
        code = cli.main(argv)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": field} | type_ for field, type_ in fields.items()]}


LONG: dict[str, Any] = {"type": "long"}
TEXT: dict[str, Any] = {"type": "string"}


def write(shop: Path, *records: dict[str, Any], domain: str = "parcel") -> None:
    (shop / f"{domain}.avsc").write_text(json.dumps(records))


def tree(*records: dict[str, Any]) -> list[Any]:
    return list(expand(list(records), namespace="titan.parcel"))


ENUM = {"type": "enum", "name": "Way", "symbols": ["air", "sea"]}
INNER = record("Inner", n=LONG)
MAYBE = {"type": ["null", "long"], "default": None}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # may follow
        (record("Sent", a=LONG), record("Sent", a=LONG, b=LONG | {"default": 0}), None),
        (record("Sent", a=LONG, b=LONG), record("Sent", a=LONG), None),
        (record("Sent", a=LONG), record("Sent", b=LONG | {"aliases": ["a"]}), None),
        (record("Sent", a=LONG), record("Shipped", a=LONG) | {"aliases": ["Sent"]}, None),
        (record("Sent", a=LONG), record("Sent", a={"type": "double"}), None),
        (record("Sent", a=LONG), record("Sent", a=MAYBE), None),
        (
            record("Sent", w={"type": ENUM}),
            record("Sent", w={"type": ENUM | {"symbols": ["rail", "sea", "air"]}}),
            None,
        ),
        (
            record("Sent", w={"type": ENUM}),
            record("Sent", w={"type": ENUM | {"symbols": ["sea"], "default": "sea"}}),
            None,
        ),
        (
            record("Sent", i={"type": INNER}),
            record("Sent", i={"type": INNER | {"name": "In", "aliases": ["Inner"]}}),
            None,
        ),
        (record("Sent", a=TEXT | {"doc": "x"}), record("Sent", a=TEXT | {"doc": "y"}), None),
        # may not
        (record("Sent", a=LONG), record("Sent", a=LONG, b=LONG), "Sent.b: was not always there and has no default"),
        (record("Sent", a=LONG), record("Sent", b=LONG), "Sent.b: was not always there"),
        (record("Sent", a=LONG), record("Sent", a=TEXT), "Sent.a: long cannot be read as string"),
        (record("Sent", a={"type": "double"}), record("Sent", a=LONG), "Sent.a: double cannot be read as long"),
        (record("Sent", a=TEXT), record("Sent", a={"type": "bytes"}), "Sent.a: string cannot be read as bytes"),
        (
            record("Sent", a=TEXT),
            record("Sent", a={"type": {"type": "string", "logicalType": "uuid"}}),
            "string cannot be read as string (uuid)",
        ),
        (
            record("Sent", a=LONG),
            record("Sent", a={"type": {"type": "long", "logicalType": "timestamp-micros"}}),
            "long cannot be read as long (timestamp-micros)",
        ),
        (record("Sent", a=MAYBE), record("Sent", a=LONG), "Sent.a: null was allowed and is no more"),
        (
            record("Sent", a=MAYBE),
            record("Sent", a={"type": ["null", "string"], "default": None}),
            "Sent.a: long was allowed",
        ),
        (
            record("Sent", a=LONG),
            record("Shipped", a=LONG),
            "titan.parcel.Sent is gone: keep its record, or give its name as an alias",
        ),
        (
            record("Sent", w={"type": ENUM}),
            record("Sent", w={"type": ENUM | {"symbols": ["sea"]}}),
            "Sent.w: air can no longer be read",
        ),
        (
            record("Sent", w={"type": ENUM}),
            record("Sent", w={"type": ENUM | {"name": "How"}}),
            "give it the alias titan.parcel.Way",
        ),
        (
            record("Sent", i={"type": INNER}),
            record("Sent", i={"type": INNER | {"name": "In"}}),
            "give it the alias titan.parcel.Inner",
        ),
        (
            record("Sent", i={"type": INNER}),
            record("Sent", i={"type": record("Inner", n=LONG, m=LONG)}),
            "Sent.i.m: was not always",
        ),
        (
            record("Sent", l={"type": {"type": "array", "items": "long"}}),
            record("Sent", l={"type": {"type": "array", "items": "string"}}),
            "Sent.l[]: long cannot be read as string",
        ),
        (
            record("Sent", l={"type": {"type": "map", "values": "long"}}),
            record("Sent", l={"type": {"type": "array", "items": "long"}}),
            "Sent.l: map cannot be read as array",
        ),
        (record("Sent", a=TEXT), record("Sent", a=TEXT | {"pii": True}), 'Sent.a: "pii" was False and is True'),
        (record("Sent", a=TEXT | {"pii": True}), record("Sent", a=TEXT), 'Sent.a: "pii" was True and is False'),
        (
            record("Sent", a={"type": ["null", "string"], "default": None, "pii": True}),
            record("Sent", a={"type": ["null", "string"], "default": None}),
            'Sent.a: "pii" was True and is False',
        ),
        (
            record("Sent", a=LONG, b=LONG),
            record("Sent", b=LONG | {"aliases": ["a"]}),
            "Sent.b: b and a were two fields",
        ),
        (
            record("Sent", a=LONG),
            record("Sent", a=LONG, b=LONG | {"aliases": ["a"], "default": 0}),
            "Sent.b: a is already read as a",
        ),
    ],
)
def test_what_may_follow_and_what_may_not(old: dict[str, Any], new: dict[str, Any], said: str | None) -> None:
    found = list(incompatible(tree(old), tree(new)))
    assert found == [] if said is None else any(said in complaint for complaint in found), found


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (record("Sent", a=LONG | {"default": "0"}), "Sent.a: '0' is no long"),
        (record("Sent", a=LONG | {"default": 2**63}), "is no long"),
        (record("Sent", a={"type": "boolean", "default": 0}), "0 is no boolean"),
        (record("Sent", a={"type": ["null", "long"], "default": 0}), "0 is no union"),
        (record("Sent", a={"type": ENUM, "default": "rail"}), "'rail' is no enum"),
        (
            record("Sent", a={"type": {"type": "string", "logicalType": "uuid"}, "default": ""}),
            "'' is no string (uuid)",
        ),
        (record("Sent", a=TEXT | {"pii": True, "default": ""}), "'' is no string"),
        (record("Sent", a={"type": {"type": "array", "items": "long"}, "default": [0, "1"]}), "is no array"),
        (record("Sent", a={"type": INNER, "default": {}}), "{} is no record"),
        (record("Sent", a=LONG, b=LONG | {"aliases": ["a"]}), "a names two fields"),
        (record("Sent", **{"no-name": LONG}), "'no-name' is no Avro name"),
        (record("Sent", w={"type": ENUM | {"symbols": ["air", "air"]}}), "not valid Avro"),
        (record("Sent", w={"type": ENUM | {"symbols": ["by-air"]}}), "not valid Avro"),
    ],
)
def test_defects_of_a_schema_by_itself(wrong: dict[str, Any], said: str) -> None:
    found = list(defects(tree(wrong)))
    assert any(said in defect for defect in found), found


def test_good_defaults_are_no_defect() -> None:
    fields: dict[str, Any] = {
        "a": LONG | {"default": 0},
        "b": {"type": "double", "default": 0},
        "c": {"type": ENUM, "default": "sea"},
        "d": {"type": {"type": "map", "values": "string"}, "default": {"k": "v"}},
        "e": {"type": {"type": "array", "items": "long"}, "default": []},
        "f": {"type": INNER, "default": {"n": 1}},
        "g": MAYBE,
    }
    assert list(defects(tree(record("Sent", **fields)))) == []


def test_check_asks_for_the_lock_and_lock_gives_ids(shop: Path, run: Check) -> None:
    write(shop, record("Packed", price={"type": "titan.common.Money"}), domain="crate")
    write(shop, record("Sent", to=LONG), record("Lost", price={"type": "titan.common.Money"}))
    subjects = ["titan.crate-titan.crate.Packed", "titan.parcel-titan.parcel.Sent", "titan.parcel-titan.parcel.Lost"]
    assert run("check") == (1, f"not locked: {', '.join(subjects)}; run `titan schemas lock`\n")
    code, said = run("lock")
    assert (code, said.splitlines()) == (
        0,
        [f"locked {subject} version 1 as id {id}" for id, subject in enumerate(subjects, start=1)],
    )
    assert run("check") == (0, "")
    assert run("lock") == (0, "")
    money = json.loads((shop / "common.avsc").read_text())[0]
    assert history.load()[2].schema == {
        "type": "record",
        "name": "titan.parcel.Lost",
        "fields": [
            {
                "name": "price",
                "type": {
                    "type": "record",
                    "name": "titan.common.Money",
                    "fields": [{"name": field["name"], "type": field["type"]} for field in money["fields"]],
                },
            }
        ],
    }

    # One event changes, in another place of its file: the others keep their schemas and ids.
    write(shop, record("Lost", price={"type": "titan.common.Money"}), record("Sent", to=LONG, kg=LONG | {"default": 0}))
    assert run("check")[0] == 1
    assert run("lock") == (0, "locked titan.parcel-titan.parcel.Sent version 2 as id 4\n")
    assert [(entry.id, entry.version) for entry in history.load()] == [(1, 1), (2, 1), (3, 1), (4, 2)]


def test_documentation_may_change_without_a_new_version(shop: Path, run: Check) -> None:
    write(shop, record("Sent", to=LONG))
    run("lock")
    write(shop, record("Sent", to=LONG | {"doc": "kilograms"}) | {"doc": "It left."})
    assert run("check") == (0, "")


def test_a_shared_type_that_changes_changes_who_uses_it(shop: Path, run: Check) -> None:
    write(shop, record("Opened"), record("Packed", price={"type": "titan.common.Money"}), domain="crate")
    write(shop, record("Sent", to=LONG))
    run("lock")
    common = json.loads((shop / "common.avsc").read_text())
    common[0]["fields"].append({"name": "exponent", "type": "long", "default": 2})
    (shop / "common.avsc").write_text(json.dumps(common))
    assert run("lock") == (0, "locked titan.crate-titan.crate.Packed version 2 as id 4\n")


def test_every_past_version_counts(shop: Path, run: Check) -> None:
    """Transitive: `b` could be read from version 2, and version 1 had none."""
    write(shop, record("Sent", a=LONG))
    run("lock")
    write(shop, record("Sent", a=LONG, b=LONG | {"default": 0}))
    run("lock")
    write(shop, record("Sent", a=LONG, b=LONG))
    code, said = run("check")
    assert (code, said) == (
        1,
        "parcel: Sent.b: was not always there and has no default: give it one (against Sent 1)\n",
    )
    assert run("lock")[0] == 1
    assert len(history.load()) == 2


def test_an_event_that_is_gone_without_an_heir_is_refused(shop: Path, run: Check) -> None:
    lost = record("Lost", b=LONG)
    write(shop, record("Sent", a=LONG), lost)
    run("lock")
    write(shop, record("Sent", a=LONG, b=MAYBE), lost)
    run("lock")
    for left in ([lost], [record("Shipped", a=LONG, b=MAYBE), lost]):
        write(shop, *left)
        code, said = run("check")
        assert code == 1
        assert said.startswith("parcel: titan.parcel.Sent is gone: keep its record, or give its name as an alias")
        assert said.splitlines()[0].endswith("(against Sent 1, Sent 2)")
        assert run("lock")[0] == 1
    assert len(history.load()) == 3


def test_a_renamed_event_is_a_new_subject_that_reads_the_old_ones(
    shop: Path, run: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_locked", history.load)
    write(shop, record("Sent", a=LONG))
    run("lock")
    first = bind("parcel", "Sent", {"a": int}).encode({"a": 7})

    shipped = record("Shipped", a=LONG, b=LONG) | {"aliases": ["Sent"]}
    write(shop, shipped)
    assert run("check") == (
        1,
        "parcel: Shipped.b: was not always there and has no default: give it one (against Sent 1)\n",
    )
    shipped["fields"] = [LONG | {"name": "b", "default": 5}, LONG | {"name": "grams", "aliases": ["a"]}]
    write(shop, shipped)
    assert run("lock") == (0, "locked titan.parcel-titan.parcel.Shipped version 1 as id 2\n")
    assert run("check") == (0, "")
    codec._domains.clear()
    codec._readers.clear()
    binding = bind("parcel", "Shipped", {"grams": int, "b": int})
    second = binding.encode({"grams": 8, "b": 9})
    for _ in range(2):  # the second time from the cache
        assert codec.decode("parcel", first) == ("Shipped", {"grams": 7, "b": 5})
        assert codec.decode("parcel", second) == ("Shipped", {"grams": 8, "b": 9})

    shipped["aliases"] = []  # the heir must stay named
    write(shop, shipped)
    assert "titan.parcel.Sent is gone" in run("check")[1]


def test_a_removed_domain_is_told(shop: Path, run: Check) -> None:
    write(shop, record("Sent", a=LONG))
    run("lock")
    (shop / "parcel.avsc").unlink()
    assert run("check") == (
        1,
        "parcel is in the history, but parcel.avsc is gone: its events must stay readable\n",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ('{"type": "record"}', "not a type this platform"),
        ("[]", "an array of event records"),
        ('["long"]', "an array of event records"),
        ('[{"type": "record", "name": "Sent"}]', "not an Avro schema"),
        ('[{"type": "record", "name": "other.Sent", "fields": []}]', "not in the namespace titan.parcel"),
        (
            '[{"type": "record", "name": "Sent", "fields": [{"name": "a", "type": "Money"}]}]',
            "neither an Avro type nor defined",
        ),
        (
            '[{"type": "record", "name": "Sent", "fields": [{"name": "a", "type": {"type": "fixed"}}]}]',
            "not a type this platform",
        ),
        (
            '[{"type":"record","name":"A","fields":[]},{"type":"record","name":"A","fields":[]}]',
            "titan.parcel.A is defined twice",
        ),
    ],
)
def test_a_file_that_is_no_schema_is_told(shop: Path, run: Check, content: str, said: str) -> None:
    (shop / "parcel.avsc").write_text(content)
    code, told = run("check")
    assert code == 1
    assert f"{shop}/parcel.avsc" in told
    assert said in told


def locked(shop: Path, run: Check) -> list[str]:
    for fields in ({"a": LONG}, {"a": LONG, "b": MAYBE}, {"a": LONG, "b": MAYBE, "c": MAYBE}):
        write(shop, record("Sent", **fields))
        assert run("lock")[0] == 0
    return history.FILE.read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("tamper", "line"),
    [
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [*lines[:2], lines[2].replace('"name":"c"', '"name":"d"')], 3),
        (lambda lines: [lines[0].replace("long", "string"), *lines[1:]], 1),
        (lambda lines: [lines[0], lines[1].replace('"version":2', '"version":3'), lines[2]], 2),
        (lambda lines: [*lines, lines[2]], 4),
        (lambda lines: [*lines, "<<<<<<< HEAD\n"], 4),
        (lambda lines: [*lines, "[]\n"], 4),
    ],
)
def test_a_history_that_was_edited_is_refused(
    shop: Path, run: Check, tamper: Callable[[list[str]], list[str]], line: int
) -> None:
    lines = tamper(locked(shop, run))
    history.FILE.write_text("".join(lines))
    for command in ("check", "lock"):
        code, said = run(command)
        assert code == 1
        assert f"line {line} of the schema history" in said
        assert "restore schemas/history.jsonl from version control" in said
    assert history.FILE.read_text() == "".join(lines)
    with pytest.raises(HistoryBroken):
        codec._locked.__wrapped__()


def test_those_who_lock_at_once_share_neither_an_id_nor_a_schema(shop: Path) -> None:
    """Eight lock an event of their own, and all the same one."""
    sent, lost = (canonical(one) for one in tree(record("Sent", a=LONG), record("Lost")))

    def lock(n: int) -> None:
        history.append([(f"titan.d{n}-titan.d{n}.Sent", sent), ("titan.parcel-titan.parcel.Lost", lost)])

    threads = [threading.Thread(target=lock, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.id for entry in history.load()] == list(range(1, 10))
    assert sorted(entry.domain for entry in history.load()) == [*(f"d{n}" for n in range(8)), "parcel"]


def test_a_locked_domain_writes_and_a_changed_one_only_reads(
    shop: Path, run: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(shop, record("Lost"), record("Sent", a=LONG))
    run("lock")
    monkeypatch.setattr(codec, "_locked", history.load)
    data = bind("parcel", "Sent", {"a": int}).encode({"a": 7})
    assert data == b"\0\0\0\0\2\x0e"
    assert codec.decode("parcel", data) == ("Sent", {"a": 7})

    codec._domains.clear()
    codec._readers.clear()
    write(shop, record("Lost"), record("Sent", a=LONG, b=MAYBE))
    binding = bind("parcel", "Sent", {"a": int, "b": int | None})
    assert codec.decode("parcel", data) == ("Sent", {"a": 7, "b": None})
    with pytest.raises(Unlocked, match=r"Sent of schemas/avro/parcel\.avsc is not locked"):
        binding.encode({"a": 7, "b": None})
    assert bind("parcel", "Lost", {}).encode({}) == b"\0\0\0\0\1\0"


def test_a_domain_reads_its_own_events_only(shop: Path, run: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_locked", history.load)
    write(shop, record("Sent", a=LONG))
    write(shop, record("Sent", a=LONG), domain="parcels")
    run("lock")
    data = bind("parcel", "Sent", {"a": int}).encode({"a": 7})
    bind("parcels", "Sent", {"a": int})
    with pytest.raises(Unreadable, match=r"schema id 1 is not one of titan\.parcels's: \[2\]"):
        codec.decode("parcels", data)


def test_ours_is_locked_and_unbroken() -> None:
    """What `titan schemas check` says of this repository, whose events must be writable."""
    assert cli.survey(codec.AVRO, history.load()) == ([], [])


def test_common_is_no_domain() -> None:
    with pytest.raises(SchemaError):
        bind("common", "Money", {"amount": int, "currency": str})
