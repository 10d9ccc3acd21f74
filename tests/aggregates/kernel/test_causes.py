"""What has had its effect has it once, for as long as anybody may tell of it again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from aggregates.kernel import Causes, Refused
from aggregates.kernel.quota import CLOSED_KEPT

ONE, TWO, NOW = UUID(int=1), UUID(int=2), datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_a_cause_has_its_effect_once() -> None:
    causes = Causes()
    assert causes.may_take(ONE, 5)
    causes.take(ONE, 5, NOW)
    assert not causes.may_take(ONE, 5)
    with pytest.raises(Refused, match=f"{ONE} was of 5, not 6"):
        causes.may_take(ONE, 6)
    assert causes.may_take(TWO, 6)


def test_causes_are_remembered_for_a_while_and_no_longer() -> None:
    causes = Causes()
    causes.take(ONE, 5, NOW)
    causes.take(TWO, 5, NOW + CLOSED_KEPT)
    assert not causes.may_take(ONE, 5)
    causes.take(UUID(int=3), 5, NOW + CLOSED_KEPT + timedelta(microseconds=1))
    assert causes.may_take(ONE, 5) and not causes.may_take(TWO, 5)
