"""One aggregate, as it is and as it was, from its store and from its topic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from replay import aggregate
from replay.aggregate import story
from replay.log import ReplayError
from tests.kernel.servers import Stack
from tests.kernel.tally import DOMAIN, Tally
from tests.replay.past import TALLIES, Past, past, publish

ONE = TALLIES[0]


@pytest.fixture(scope="module")
def lived(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with past(stack, tmp_path_factory.mktemp("past")) as made:
        publish(made.settings, [row for row in made.rows if row.originator_id == ONE][-2:])  # twice in the topic
        yield made


@pytest.mark.parametrize("source", ["store", "topic"])
def test_its_state_and_its_timeline(lived: Past, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in lived.rows if row.originator_id == ONE]
    found = story(lived.settings, DOMAIN, ONE, source=source, as_json=True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["events"] == one["of"] > 0 for one in told] == [True] * (source == "topic")
    assert isinstance(found.state, Tally)
    assert (found.state.name, found.state.ended) == ("mine", True)
    assert [(one.event.version, one.event.type, one.event_id) for one in found.events] == [
        (row.originator_version, row.event_type, row.event_id) for row in rows
    ]
    document = json.loads(aggregate._json(found.document(source)))
    assert document["state"]["name"] == "mine"
    assert document["events"][1]["data"] == {"name": "a\tb\\c\n"}
    assert document["events"][0] | {"data": {}} == {
        "version": 1, "at": rows[0].occurred_at.isoformat(), "type": "tally.Begun", "notification_id": 1, "data": {},
        "event_id": str(rows[0].event_id), "actor": "user:test", "correlation": rows[0].correlation_id,
        "causation": str(rows[0].causation_id),
    }  # fmt: skip


def test_as_it_was(lived: Past) -> None:
    rows = [row for row in lived.rows if row.originator_id == ONE]
    then = story(lived.settings, DOMAIN, ONE, version=2)
    assert (then.state.version, then.state.name) == (2, "a\tb\\c\n")  # type: ignore[attr-defined]
    at = story(lived.settings, DOMAIN, ONE, at=rows[2].occurred_at)
    assert at.state.version == 3
    with pytest.raises(ReplayError, match="there was no tally .* then"):
        story(lived.settings, DOMAIN, ONE, at=rows[0].occurred_at - timedelta(seconds=1))
    with pytest.raises(ReplayError, match=f"no version 99 of tally .*: the last is {rows[-1].originator_version}"):
        story(lived.settings, DOMAIN, ONE, version=99)
    with pytest.raises(ReplayError, match="the topic has no tally"):
        story(lived.settings, DOMAIN, uuid4(), source="topic")


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["nonsense", str(ONE)], "there is no domain nonsense"),
        (["order", "17"], "'17' is not the id of an aggregate"),
        (["order", str(ONE), "--at", "yesterday"], "'yesterday' is no time"),
        (["order", str(ONE), "--at", "2020-01-01T00:00:00"], "needs its zone"),
        (["order", str(ONE), "--at", (datetime.now(UTC) + timedelta(days=1)).isoformat()], "is in the future"),
    ],
)
def test_what_can_not_be_meant_is_one_line(argv: list[str], why: str) -> None:
    with pytest.raises(ReplayError, match=why) as error:
        aggregate.main(argv)
    assert "\n" not in str(error.value)
