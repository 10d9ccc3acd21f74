"""A host of a processor: killed, raced, cut off and given records in any way, its states and its commands are right, once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from uuid import UUID

import psycopg
import pytest

from aggregates.cart import Added, Cart, Removed
from aggregates.kernel import Commands, Event, Refused
from infra.settings import Settings
from projections.kernel.parking import TooManyParked
from projections.kernel.runner import Down
from streams.abandonment import Abandonment, Untouched
from streams.kernel import lanes
from streams.kernel import processor as kernel
from streams.kernel.lanes import Misread, Where
from streams.kernel.processor import Processor
from tests.kernel.carts import HOUR, Shop, cut_off, in_shop
from tests.kernel.told import logged


def check(shop: Shop, carts: list[UUID]) -> None:
    """Each was left for good, and raised for each time that it was left."""
    for cart in carts:
        happened = shop.happened(cart)
        raised = [name for name in happened if name in ("Abandoned", "Returned")]
        assert raised == ["Abandoned", "Returned"] * (len(raised) // 2) + ["Abandoned"], happened
    fired = shop.count("SELECT count(*) FROM cart_commands WHERE command_id IS NOT NULL")
    assert fired >= sum(shop.happened(cart).count("Abandoned") for cart in carts)
    assert shop.count("SELECT count(*) FROM processor_states WHERE due IS NOT NULL") == 0


@pytest.mark.parametrize("seed", range(6))
def test_any_shoppers_and_any_crashes(postgres: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Random shoppers, duplicated and dropped records, partitions that move, and kills at any place where it waits."""

    async def story(shop: Shop) -> None:
        dice = Random(seed)
        carts = [await shop.take() for _ in range(8)]
        for _ in range(40):
            shop.now += HOUR * dice.choice((0.01, 0.3, 1.2))
            for cart in dice.sample(carts, dice.randrange(3)):
                await shop.add(cart)
            shop.publish()
            if dice.random() < 0.3:  # the relay repeats itself
                where, lane = dice.choice(sorted(shop.topic.records.items()))
                start = max(0, len(lane) - dice.randrange(1, 6))
                for one in lane[start:]:
                    lane.append(type(one)(*where, len(lane), one.key, one.value, one.headers))
            records = shop.coming()
            if records and dice.random() < 0.2:
                del records[dice.randrange(len(records))]  # Faust loses one
            patience = 8 if dice.random() < 0.5 else 1000
            killed = await cut_off(shop.feed(records), dice, patience)
            killed = killed or await cut_off(shop.host.fire_due(), dice, patience)
            if killed or dice.random() < 0.1:
                await shop.restart()
            elif dice.random() < 0.2:
                shop.host.release()
                await shop.assign()
        shop.now += 2 * HOUR
        monkeypatch.setattr(lanes, "HOLE_S", 0.0)
        for _ in range(4):
            await shop.work()
        check(shop, carts)

    in_shop(postgres, story, partitions=3)


def test_two_hosts_of_one_partition_do_what_one_would(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        other = shop.new_host()
        await shop.assign(other)
        carts = [await shop.take() for _ in range(5)]
        shop.publish()
        records = shop.coming()
        await asyncio.gather(shop.feed(records[:6]), shop.feed(records, other))
        for cart in carts:
            await shop.add(cart)
        shop.publish()
        more = shop.coming()
        await asyncio.gather(shop.feed([*records[6:], *more]), shop.feed(more, other))
        shop.now += HOUR + timedelta(seconds=1)
        await asyncio.gather(shop.host.fire_due(), other.fire_due())
        await asyncio.gather(shop.host.fire_due(), other.fire_due())
        assert [shop.happened(cart).count("Abandoned") for cart in carts] == [1] * 5
        await shop.restart()
        await shop.work()
        check(shop, carts)

    in_shop(postgres, story)


@dataclass(frozen=True)
class Count:
    events: int


class Tally(Processor[Count]):
    """Counts what happens to a cart: whatever is folded twice or not at all shows."""

    name = "tally"
    events = (Added, Removed)
    state = Count

    def on(self, state: Count | None, event: Event) -> Count:
        return Count(1 + (state.events if state else 0))

    def due(self, state: Count) -> None:
        return None

    async def fire(self, id: UUID, state: Count, commands: Commands) -> None:
        raise AssertionError("nothing is due")

    def fired(self, state: Count) -> Count:
        return state


@pytest.mark.parametrize("seed", range(3))
def test_each_event_is_folded_once(postgres: str, seed: int) -> None:
    """By hosts that take a partition from each other, are killed, and are given the same records again."""

    async def story(shop: Shop) -> None:
        dice = Random(seed)
        carts = [await shop.take() for _ in range(5)]
        hosts = [shop.host_of(Tally(Settings())) for _ in range(3)]
        for host in hosts:
            await shop.assign(host)
        for _ in range(25):
            for cart in dice.choices(carts, k=dice.randrange(4)):
                await shop.add(cart)
            shop.publish()
            lane = shop.topic.records["cart", 0]
            fed = [host.handle(lane[max(0, host.lanes["cart", 0].next - dice.randrange(3)) :]) for host in hosts]
            await asyncio.gather(*(cut_off(one, dice, patience=dice.choice((5, 1000))) for one in fed))
            victim = dice.randrange(3)
            hosts[victim] = shop.host_of(Tally(Settings()))
            await shop.assign(hosts[victim])
        await hosts[0].handle(lane)
        for cart in carts:
            expected = sum(name == "Added" for name in shop.happened(cart))
            assert shop.count(f"SELECT (state->>'events')::int FROM processor_states WHERE key = '{cart}'") == expected

    in_shop(postgres, story)


def test_a_host_that_has_lost_a_partition_takes_back_no_state(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        cart = await shop.take()
        await shop.work(HOUR / 2)
        other = shop.new_host()

        class Slow(Abandonment):
            async def fire(self, id: UUID, state: Untouched, commands: Commands) -> None:
                await super().fire(id, state, commands)
                await shop.add(cart)  # meanwhile the shopper returns, and another host sees it
                await shop.assign(other)
                shop.publish()
                await other.handle(shop.topic.records["cart", 0])

        shop.kind = Slow
        await shop.restart()
        await shop.feed(shop.coming())
        shop.now += HOUR
        assert await shop.host.fire_due() == 1
        shop.kind = Abandonment
        await shop.restart()
        await shop.work(HOUR)
        assert shop.happened(cart) == ["Opened", "Added", "Abandoned", "Returned", "Added", "Abandoned"]

    in_shop(postgres, story)


def test_a_host_killed_between_its_command_and_its_state_gives_it_once(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shop: Shop) -> None:
        cart = await shop.take()
        shop.now += HOUR
        shop.publish()
        await shop.feed(shop.coming())

        async def killed(*_: object) -> None:
            raise asyncio.CancelledError

        monkeypatch.setattr(shop.host, "_settle", killed)
        with pytest.raises(asyncio.CancelledError):
            await shop.host.fire_due()
        assert shop.happened(cart)[-1] == "Abandoned"
        await shop.add(cart)  # the shopper returns before the new host is there
        await shop.restart()
        await shop.feed(shop.coming())
        assert await shop.host.fire_due() == 1  # asked again: the answer is the first one's
        assert shop.happened(cart) == ["Opened", "Added", "Abandoned", "Returned", "Added"]
        assert shop.count("SELECT count(*) FROM cart_commands") == 1
        await shop.work(HOUR)
        assert shop.happened(cart).count("Abandoned") == 2

    in_shop(postgres, story)


def cut_connections(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_database_that_cuts_every_connection(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        carts = [await shop.take() for _ in range(10)]
        shop.publish()
        records = shop.coming()
        while records:
            cut_connections(postgres)
            await shop.feed(records[:3])
            del records[:3]
        shop.now += HOUR
        cut_connections(postgres)
        while "Abandoned" not in shop.happened(carts[0]):
            await shop.host.fire_due()
        cut_connections(postgres)
        await shop.restart()
        await shop.work()
        assert not shop.host.waiting
        check(shop, carts)

    in_shop(postgres, story)


def test_whoever_gives_up_waiting_for_a_server_does_not_wait(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions go while they are being taken over: a watchdog that took the host to be waiting would never bark again."""

    async def away(*_: object) -> dict[Where, tuple[int, int]]:
        raise Down("Kafka does not answer")

    async def story(shop: Shop) -> None:
        await shop.take()
        await shop.work()
        monkeypatch.setattr(shop.topic, "peek", away)
        taking = asyncio.create_task(shop.assign())
        while not shop.host.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        taking.cancel()
        with suppress(asyncio.CancelledError):
            await taking
        assert not shop.host.waiting

    in_shop(postgres, story)


def test_a_record_that_was_left_out_is_read_again_and_a_true_hole_is_passed(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        where, lane = "cart", shop.topic.records["cart", 0]
        cart = await shop.take()
        await shop.add(cart)
        shop.publish()
        records = shop.coming()
        await shop.feed([records[0], records[2]])
        assert shop.topic.told[where, 0] == 1
        assert shop.host.lanes[where, 0].next == 1
        await shop.feed([records[2]])  # still on its way from before the seek
        assert shop.host.lanes[where, 0].next == 1
        await shop.feed(records[1:])
        assert shop.host.lanes[where, 0].next == 3
        await shop.add(cart)
        shop.publish()
        one = lane.pop()  # transactions end with a marker: an offset without a record
        lane.append(type(one)(where, 0, 7, one.key, one.value, one.headers))
        await shop.feed(lane[3:])
        assert shop.host.lanes[where, 0].next == 8

    in_shop(postgres, story)


def test_what_faust_has_dropped_is_asked_for(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(shop: Shop) -> None:
        await shop.take()
        shop.publish()
        monkeypatch.setattr(lanes, "STUCK_S", 0.0)
        monkeypatch.setattr(kernel, "POLL_S", 0.01)
        turning = asyncio.create_task(shop.host.run())
        shop.topic.told.clear()
        await asyncio.wait_for(shop.topic.sought.wait(), 30)
        turning.cancel()
        assert shop.topic.told == {("cart", 0): 0}

    in_shop(postgres, story)


def test_a_topic_made_anew_is_read_from_its_beginning(postgres: str, caplog: pytest.LogCaptureFixture) -> None:
    async def story(shop: Shop) -> None:
        carts = [await shop.take() for _ in range(3)]
        shop.publish()
        lane = shop.topic.records["cart", 0]
        lane += [type(one)("cart", 0, one.offset + 6, one.key, one.value, one.headers) for one in lane[2:]]
        await shop.feed(shop.coming())
        await shop.add(carts[0])
        await shop.work(HOUR)
        assert [shop.happened(cart).count("Abandoned") for cart in carts] == [1, 1, 1]

        shop.topic.records["cart", 0], shop.topic.published = [], 0
        await shop.add(carts[1])
        shop.publish()
        with pytest.raises(Misread):  # while it runs: the process ends
            await shop.host.handle(shop.topic.records["cart", 0])
        await shop.restart()
        assert "ALARM: abandonment: topic cart [0] was made anew" in caplog.text
        assert shop.topic.told["cart", 0] == 0
        await shop.work(HOUR)
        assert [shop.happened(cart).count("Abandoned") for cart in carts] == [1, 2, 1]

    in_shop(postgres, story)


class Touchy(Abandonment):
    """Fails for some carts."""

    broken = True
    patience = 0  # so many poisonous events are taken by each

    def on(self, state: Untouched | None, event: Event) -> Untouched | None:
        if self.broken and isinstance(event, Added) and event.sku == "POISON":
            self.patience -= 1
            if self.patience >= 0:
                return super().on(state, event)
            raise ArithmeticError("poison")
        return super().on(state, event)

    async def fire(self, id: UUID, state: Untouched, commands: Commands) -> None:
        if "REFUSED" in state.skus:
            raise Refused("not today")
        if self.broken and "BUG" in state.skus:
            raise ArithmeticError("a bug")
        await super().fire(id, state, commands)


def test_poison_parks_its_cart_until_it_is_mended_and_the_others_flow(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shop: Shop) -> None:
        shop.kind = Touchy
        await shop.restart()
        good, bad = await shop.take(), await shop.take("POISON")
        await shop.add(bad, "SPOON")
        for _ in range(2):
            await shop.work()
            await shop.restart()
        assert shop.count("SELECT count(*) FROM parked WHERE processor = 'processor.abandonment'") == 2
        await shop.add(bad, "FORK")
        lane = shop.topic.records["cart", 0]
        shop.publish()
        lane.append(type(lane[0])("cart", 0, len(lane), b"?", b"?", []))
        await shop.work(HOUR)
        assert shop.count("SELECT count(*) FROM parked") == 4
        assert shop.happened(good)[-1] == "Abandoned"
        assert shop.happened(bad)[-1] == "Added"

        monkeypatch.setattr(Touchy, "broken", False)
        await shop.restart()  # with the bug mended
        assert shop.count("SELECT count(*) FROM parked") == 1  # that record is none of our events
        assert await shop.work(timedelta(seconds=1)) == 1
        await shop.add(bad)
        await shop.work(HOUR)
        check(shop, [good, bad])
        assert shop.happened(bad).count("Abandoned") == 2

    with logged() as lines:
        in_shop(postgres, story)
    told = [line for line in lines() if line["event"].startswith("processor.abandonment: cart:")]
    with psycopg.connect(postgres) as connection:
        correlations: dict[int, str] = dict(
            connection.execute("SELECT notification_id, correlation_id FROM cart_events").fetchall()
        )
    assert len(told) == 4 and "ArithmeticError: poison" in told[0]["event"]
    for line in told:
        number = int(line["event"].split(":")[2].split()[0])
        assert line.get("correlation") == correlations.get(number), "that record which is no event has none"


def test_a_retry_from_outside_takes_over_in_order_and_the_host_that_is_at_work_goes_on(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shop: Shop) -> None:
        shop.kind = Touchy
        await shop.restart()
        bad = await shop.take("MUG")
        key, others = str(bad).encode(), [await shop.take() for _ in range(2)]
        for sku in ("POISON", "SPOON", "POISON", "FORK"):
            await shop.add(bad, sku)
        await shop.work()

        async def retry() -> tuple[int, str]:
            return await shop.new_host().retry(("cart", 0), key)

        assert await retry() == (0, "ArithmeticError: poison")
        assert shop.count("SELECT max(attempts) FROM parked") == 1
        monkeypatch.setattr(Touchy, "patience", 1)  # the first poison is none any more
        assert await retry() == (2, "ArithmeticError: poison")
        assert shop.count("SELECT count(*) FROM parked") == 2
        assert shop.count("SELECT count(*) FROM parked_sequences") == 1
        await shop.add(bad, "KNIFE")
        shop.publish()
        [coming] = shop.coming()
        assert await asyncio.to_thread(shop.parking.follow, "processor.abandonment", coming)
        assert (await retry())[1].startswith("its process has not passed these events yet")
        await shop.work()
        monkeypatch.setattr(Touchy, "broken", False)
        assert sorted(await asyncio.gather(retry(), retry())) == [(0, ""), (3, "")]
        assert shop.count("SELECT count(*) FROM parked") == shop.count("SELECT count(*) FROM parked_sequences") == 0
        await shop.host.look()  # the timer that the retry has set
        shop.now += HOUR + timedelta(seconds=1)
        await shop.host.fire_due()
        assert shop.happened(bad)[-1] == "Abandoned"
        await shop.add(bad)
        await shop.work(HOUR)
        check(shop, [bad, *others])
        assert shop.happened(bad).count("Abandoned") == 2

    in_shop(postgres, story)


def test_what_was_parked_and_not_passed_is_not_folded_before_it_is_met_again(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(shop: Shop) -> None:
        shop.kind = Touchy
        await shop.restart()
        cart = await shop.take("POISON")

        async def killed(*_: object) -> None:
            raise asyncio.CancelledError

        monkeypatch.setattr(shop.host, "_put", killed)
        with pytest.raises(asyncio.CancelledError):
            await shop.work()
        monkeypatch.setattr(Touchy, "broken", False)
        for parked in (1, 0):
            await shop.restart()
            assert shop.count("SELECT count(*) FROM parked") == parked
            await shop.work()
        await shop.work(HOUR)
        check(shop, [cart])

    in_shop(postgres, story)


def test_too_much_poison_stops_it(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        shop.kind = Touchy
        await shop.restart()
        for _ in range(25):
            await shop.take("POISON")
        with pytest.raises(TooManyParked):
            await shop.work()

    in_shop(postgres, story)


def test_a_timer_that_fails_holds_up_no_other_and_is_fired_again(
    postgres: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(shop: Shop) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(kernel, "FIRE_MAX", 2)
        shop.kind = Touchy
        await shop.restart()
        buggy, refused = [await shop.take("BUG") for _ in range(2)], await shop.take("REFUSED")
        good = [await shop.take() for _ in range(3)]
        shop.now += HOUR
        shop.publish()
        await shop.feed(shop.coming())
        while shop.count("SELECT count(*) FROM processor_states WHERE due IS NOT NULL") > 2:
            await shop.host.fire_due()
        assert [shop.happened(cart)[-1] for cart in (*buggy, refused, *good)] == ["Added"] * 3 + ["Abandoned"] * 3
        assert "not today" in caplog.text
        monkeypatch.setattr(Touchy, "broken", False)
        await shop.restart()  # with the bug mended
        assert await shop.work() == 2
        check(shop, [*buggy, *good])

    in_shop(postgres, story)


def test_many_timers_at_once(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        carts = await asyncio.gather(*(shop.take() for _ in range(700)))
        shop.now += timedelta(seconds=1)
        await shop.tell(carts[0], Cart.remove, "MUG", shop.now)
        assert await shop.work(HOUR) == 699
        assert shop.count("SELECT count(*) FROM cart_events WHERE event_type = 'cart.Abandoned'") == 699

    in_shop(postgres, story, partitions=2)
