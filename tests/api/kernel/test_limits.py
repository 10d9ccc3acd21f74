"""Rate limits that are exact to the token, and what happens without Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast
from uuid import uuid4

import pytest
import redis.asyncio as aio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from api.kernel import network
from api.kernel.limits import BLOCKS_A_BURST, RateLimiter
from api.kernel.network import UNKNOWN, network_of
from api.kernel.problems import Problem
from tests.api.kernel.conftest import Shop, shop_on


def run(url: str, work: Callable[[RateLimiter], Awaitable[None]]) -> None:
    async def main() -> None:
        async with aio.Redis.from_url(url, socket_connect_timeout=0.2, retry=Retry(NoBackoff(), 0)) as client:
            await work(RateLimiter(client, f"test-{uuid4().hex}"))

    asyncio.run(main())


async def admitted(limiter: RateLimiter, name: str, tries: int, per_s: float, burst: int) -> tuple[int, list[Problem]]:
    async def one() -> Problem | None:
        try:
            if not limiter.pass_at_once(name):
                await limiter.admit(name, per_s, burst)
        except Problem as problem:
            return problem
        return None

    refused = [found for found in await asyncio.gather(*(one() for _ in range(tries))) if found]
    return tries - len(refused), refused


@pytest.mark.parametrize("burst", [1, 5, 40])
def test_exactly_the_burst_is_let_through(redis: str, burst: int) -> None:
    async def work(limiter: RateLimiter) -> None:
        passed, refused = await admitted(limiter, "ada", burst + 20, 0.01, burst)
        assert passed == burst
        assert {problem.status for problem in refused} == {429}
        wait = int(dict(refused[0].headers)[b"retry-after"])
        assert 90 <= wait <= 101  # one token comes in 100 s

    run(redis, work)


def test_the_bucket_fills_again(redis: str) -> None:
    async def work(limiter: RateLimiter) -> None:
        assert (await admitted(limiter, "ada", 30, 50, 5))[0] < 30
        until = asyncio.get_running_loop().time() + 5
        while (await admitted(limiter, "ada", 1, 50, 5))[0] == 0:
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.005)

    run(redis, work)


def test_callers_have_buckets_of_their_own_and_processes_share_them(redis: str) -> None:
    async def main() -> None:
        namespace = f"test-{uuid4().hex}"
        async with aio.Redis.from_url(redis) as one, aio.Redis.from_url(redis) as two:
            first, second = RateLimiter(one, namespace), RateLimiter(two, namespace)
            passed = await asyncio.gather(*(admitted(each, "ada", 100, 0.01, 50) for each in (first, second)))
            assert passed[0][0] + passed[1][0] == 50
            assert (await admitted(first, "bob", 1, 0.01, 50))[0] == 1

    asyncio.run(main())


def test_most_requests_ask_nobody(redis: str) -> None:
    async def work(limiter: RateLimiter) -> None:
        draw, asked = limiter._draw, 0

        async def counted(**given: Any) -> Any:
            nonlocal asked
            asked += 1
            return await draw(**given)

        limiter._draw = cast(Any, counted)
        assert (await admitted(limiter, "ada", 400, 0.01, 400))[0] == 400
        assert asked == BLOCKS_A_BURST

    run(redis, work)


def test_without_redis_everybody_is_let_through_and_redis_is_asked_rarely() -> None:
    async def work(limiter: RateLimiter) -> None:
        began = asyncio.get_running_loop().time()
        assert (await admitted(limiter, "ada", 500, 0.01, 5))[0] == 500
        assert asyncio.get_running_loop().time() - began < 2

    run("redis://127.0.0.1:9/0", work)


def test_a_caller_above_the_limit_is_told_when_to_come_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = shop.app.stores
    assert stores is not None
    monkeypatch.setattr(stores, "limits", stores.limits.model_copy(update={"caller_per_s": 0.1, "caller_burst": 7}))
    me = shop.of()
    answers = [shop.http.get("/purses", headers=me) for _ in range(9)]
    assert [answer.status_code for answer in answers] == [200] * 7 + [429] * 2
    assert answers[-1].headers["content-type"] == "application/problem+json"
    assert 5 <= int(answers[-1].headers["retry-after"]) <= 11
    assert shop.http.get("/purses", headers=shop.of()).status_code == 200
    assert shop.http.get("/health/live", headers=me).status_code == 200


def test_bad_tokens_are_counted_against_the_address(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = shop.app.stores
    assert stores is not None
    monkeypatch.setattr(stores.limiter, "_prefix", f"test-{uuid4().hex}:")
    monkeypatch.setattr(stores.limiter, "_leases", {})
    monkeypatch.setattr(stores, "limits", stores.limits.model_copy(update={"ip_per_s": 0.1, "ip_burst": 3}))
    statuses = [shop.http.get("/purses", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert shop.http.get("/purses", headers=shop.of()).status_code == 200


@pytest.mark.parametrize(
    ("trusted", "passed"),
    [("192.0.2.7, 127.0.0.0/8", [401, 401, 401, 401, 429]), ("192.0.2.7", [401, 429, 429, 429, 429])],
)
def test_what_a_proxy_says_of_where_a_request_comes_from_counts_if_it_is_one_of_ours(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, trusted: str, passed: list[int]
) -> None:
    """One request a network, each by way of this machine; the last is from where the one before was, whatever its sender adds."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    monkeypatch.setenv("TITAN_API_IP_PER_S", "0.01")
    monkeypatch.setenv("TITAN_API_IP_BURST", "1")
    settings = shop.settings.model_copy(update={"namespace": f"test-{uuid4().hex}"})
    monkeypatch.setattr(network, "TOLD", set())
    ways = (
        "203.0.113.1",
        "::ffff:203.0.113.2",
        "2001:db8:0:1::1",
        "2001:db8:0:2::1",
        "6.6.6.6, 2001:db8:0:2::2, 192.0.2.7",
    )
    with shop_on(settings) as here:
        statuses = [here.http.get("/purses", headers={"X-Forwarded-For": way}).status_code for way in ways]
    assert statuses == passed
    assert (set() if "127" in trusted else {"127.0.0.1"}) == network.TOLD  # an operator is told


def test_a_network_is_what_one_customer_has() -> None:
    same = [("::ffff:1.2.3.4", "1.2.3.4"), ("2001:db8::1", "2001:db8::ffff"), ("fe80::1%eth0", "fe80::2%eth1")]
    assert all(network_of(one) == network_of(other) for one, other in same)
    others = ("1.2.3.4", "1.2.3.5", "2001:db8::1", "2001:db8:0:1::1", "nonsense")
    assert len({network_of(one) for one in others}) == len(others)
    assert network_of("") == network_of("device") == UNKNOWN
