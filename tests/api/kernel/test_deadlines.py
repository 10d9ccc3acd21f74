"""A deadline ends what takes too long, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from api.kernel.deadlines import Deadlines


def test_what_takes_too_long_is_a_timeout_and_what_does_not_is_left_alone() -> None:
    async def main() -> list[str]:
        deadlines, seen = Deadlines(), list[str]()

        async def one(seconds: float, limit: float) -> None:
            try:
                with deadlines.within(limit):
                    await asyncio.sleep(seconds)
                seen.append("done")
            except TimeoutError:
                seen.append("late")
                await asyncio.sleep(0)  # the task goes on as if nobody had cancelled it
                task = asyncio.current_task()
                assert task is not None and task.cancelling() == 0

        async with asyncio.timeout(5):
            await asyncio.gather(one(60, 0.05), one(0.3, 60), one(60, 0.2), one(0, 0.01))
        return seen

    assert asyncio.run(main()) == ["done", "late", "late", "done"]


def test_whoever_is_cancelled_by_others_is_not_late() -> None:
    async def main() -> None:
        deadlines = Deadlines()

        async def one() -> None:
            with deadlines.within(60):
                await asyncio.sleep(60)

        task = asyncio.create_task(one())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_its_own_errors_stay_its_own() -> None:
    async def main() -> None:
        with Deadlines().within(0.01):
            raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        asyncio.run(main())
