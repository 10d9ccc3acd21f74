"""Abandoned carts: raised once, at the right time of the events, and withdrawn when the shopper returns."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from aggregates.cart import Cart
from tests.kernel.carts import HOUR, NOON, Shop, in_shop

MOMENT = timedelta(microseconds=1)


def test_a_cart_is_abandoned_once_it_was_untouched_for_an_hour(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        cart = await shop.take()
        assert await shop.work(HOUR - MOMENT) == 0
        assert shop.happened(cart) == ["Opened", "Added"]
        assert await shop.work(MOMENT) == 1
        assert shop.happened(cart) == ["Opened", "Added", "Abandoned"]
        for _ in range(3):
            assert await shop.work(HOUR) == 0
        assert shop.happened(cart) == ["Opened", "Added", "Abandoned"]
        assert (await shop.commands.load(Cart, cart)).abandoned

    in_shop(postgres, story)


def test_a_shopper_who_returns_withdraws_it_and_may_leave_again(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        cart = await shop.take()
        await shop.work(2 * HOUR)
        await shop.add(cart)
        assert await shop.work(HOUR - MOMENT) == 0
        assert await shop.work(MOMENT) == 1
        assert shop.happened(cart) == ["Opened", "Added", "Abandoned", "Returned", "Added", "Abandoned"]

    in_shop(postgres, story)


def test_each_touch_begins_the_hour_anew(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        cart = await shop.take()
        touches = [
            (Cart.add, "CUP", uuid4(), "Cup", 1, 100),
            (Cart.change, "CUP", 2),
            (Cart.reprice, "CUP", 90),
            (Cart.remove, "CUP"),
            (Cart.merge, uuid4(), "EUR", ()),
        ]
        for command, *args in touches:
            await shop.work(HOUR - MOMENT)
            await shop.tell(cart, command, *args, shop.now)  # type: ignore[arg-type]
        assert "Abandoned" not in shop.happened(cart)
        await shop.work(HOUR)
        assert shop.happened(cart)[-1] == "Abandoned"

    in_shop(postgres, story)


def test_a_cart_with_nothing_in_it_is_not_abandoned(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        never = (await shop.commands.open(Cart.take, uuid4(), "EUR", shop.now)).id
        emptied = await shop.take()
        await shop.tell(emptied, Cart.remove, "MUG", shop.now)
        assert await shop.work(2 * HOUR) == 0
        assert {*shop.happened(never), *shop.happened(emptied)} == {"Opened", "Added", "Removed"}

    in_shop(postgres, story)


def test_a_cart_that_is_being_checked_out_is_not_abandoned_until_it_is_given_back(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        bought, given_back, expired = [await shop.take() for _ in range(3)]
        first, second = uuid4(), uuid4()
        await shop.tell(bought, Cart.lock, first, 2)
        await shop.tell(given_back, Cart.lock, second, 2)
        await shop.work(HOUR / 2)
        await shop.tell(bought, Cart.check_out, first)
        assert await shop.work(2 * HOUR) == 1  # the others are not even asked
        assert "Abandoned" in shop.happened(expired)
        assert "Abandoned" not in [*shop.happened(bought), *shop.happened(given_back)]
        await shop.tell(given_back, Cart.unlock, second, shop.now)
        await shop.work(HOUR - MOMENT)
        assert "Abandoned" not in shop.happened(given_back)
        await shop.work(MOMENT)
        assert shop.happened(given_back)[-1] == "Abandoned"
        shop.now += timedelta(days=31)
        await shop.tell(expired, Cart.expire, shop.now)
        await shop.work(2 * HOUR)
        assert shop.happened(expired)[-1] == "Expired"
        assert shop.count("SELECT count(*) FROM processor_states") == 1  # what is over is forgotten

    in_shop(postgres, story)


def test_time_is_that_of_the_events_when_much_has_to_be_caught_up(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        left = await shop.take()
        stayed = await shop.take()
        for _ in range(4):
            shop.now += HOUR * 0.9
            await shop.add(stayed)
        shop.publish()
        records = shop.coming()
        await shop.feed(records[:-1])  # it is not read to the end: the clock says nothing
        shop.now += timedelta(days=1)
        assert await shop.host.fire_due() == 1
        assert shop.happened(left)[-1] == "Abandoned"
        assert "Abandoned" not in shop.happened(stayed)
        await shop.feed(records[-1:])
        await shop.work()
        assert shop.happened(stayed).count("Abandoned") == 1

    in_shop(postgres, story)


def test_an_event_that_comes_late_is_not_taken_for_a_return(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        cart = await shop.take()
        shop.now = NOON - HOUR / 2  # a machine whose clock is slow
        await shop.add(cart)
        shop.now = NOON
        assert await shop.work(HOUR - MOMENT) == 0  # the hour counts from the latest touch
        assert await shop.work(2 * MOMENT) == 1
        assert shop.happened(cart) == ["Opened", "Added", "Added", "Abandoned"]

    in_shop(postgres, story)


def test_a_clock_that_is_fast_abandons_nothing_early(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        cart = await shop.take()
        shop.now = NOON + timedelta(days=3)
        await shop.take()
        shop.now = NOON
        assert await shop.work(HOUR / 2) == 0
        assert await shop.work(HOUR / 2) == 1
        assert shop.happened(cart)[-1] == "Abandoned"

    in_shop(postgres, story)


def test_time_does_not_go_back_with_a_slow_clock(postgres: str) -> None:
    async def story(shop: Shop) -> None:
        cart = await shop.take()
        for at in (HOUR, -HOUR, -HOUR):
            shop.now = NOON + at
            await shop.take()
        shop.publish()
        await shop.feed(shop.coming()[:-1])  # it is not read to the end
        shop.now = NOON + 2 * HOUR
        assert await shop.host.fire_due() == 2  # and what comes late was left long ago
        assert shop.happened(cart)[-1] == "Abandoned"

    in_shop(postgres, story)
