"""Payments through the real processes, Kafka in between: confirmed by the customer; and killed over the gateway's answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from aggregates.kernel import Event, wire
from aggregates.payment import ActionRequired
from infra.settings import Settings
from streams.gateways.settings import GatewaySettings
from tests.kernel.gateway import client
from tests.kernel.platform import Platform, wait_for
from tests.kernel.topic import stored


class Counter:
    """A platform that takes payments."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.http = platform.client("service", uuid4())
        self.gateway = client(GatewaySettings.of(platform.settings))

    def pay(self, token: str) -> str:
        given = {"order": str(uuid4()), "customer": str(uuid4()), "amount": 1000, "currency": "EUR", "method": token}
        return str(self._done("/payments", given)["id"])

    def tell(self, id: str, what: str, amount: int) -> None:
        self._done(f"/payments/{id}/{what}", {what: str(uuid4()), "amount": amount, "currency": "EUR"})

    def _done(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(path, json=body, headers={"Idempotency-Key": uuid4().hex})
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def history(self, id: str) -> list[Event]:
        rows = stored(self.platform.settings.postgres, "payment")
        return [wire.recorded("payment", row).event for row in rows if row.originator_id == UUID(id)]

    def kinds(self, id: str) -> list[str]:
        return [event.type.partition(".")[2] for event in self.history(id)]

    def until(self, id: str, kind: str) -> None:
        wait_for(lambda: kind in self.kinds(id), f"{kind} in {self.kinds(id)}")

    def theirs(self, id: str) -> dict[str, Any]:
        answer = self.gateway.get(f"/payments/{id}")
        found: dict[str, Any] = answer.json()
        return found if answer.status_code == 200 else {}


@contextmanager
def taking_payments(settings: Settings, folder: Path, **env: str) -> Iterator[Counter]:
    secret = folder / "gateway-secret"
    with Platform(settings, TITAN_TEST_GATEWAY_SECRET=str(secret), **env) as platform:
        given = platform.settings.model_dump(exclude_unset=True)
        platform.settings = GatewaySettings(**given, test_gateway_secret=secret)
        platform.start("relay", "gateway", "sagas", "api")
        yield Counter(platform)


def test_a_customer_confirms_at_the_bank(settings: Settings, tmp_path: Path) -> None:
    with taking_payments(settings, tmp_path) as counter:
        for answer, ending in (("yes", "Authorised"), ("no", "Declined")):
            id = counter.pay("tok_requiresAction")
            counter.until(id, "ActionRequired")
            asked = counter.history(id)[-1]
            assert isinstance(asked, ActionRequired)
            assert httpx.post(asked.url, params={"answer": answer}).status_code == 200
            counter.until(id, ending)
            assert counter.kinds(id) == ["Requested", "Routed", "ActionRequired", ending]


@pytest.mark.slow
def test_a_process_killed_over_the_gateways_answers_charges_once(settings: Settings, tmp_path: Path) -> None:
    env = {
        "TITAN_TEST_GATEWAY_HOLD_S": "120",
        "TITAN_GATEWAY_TIMEOUT_S": "120",
        "TITAN_TEST_GATEWAY_WEBHOOK": "http://127.0.0.1:9/",  # no webhook tells what came of it
    }
    with taking_payments(settings, tmp_path, **env) as counter:
        captured, refunded = counter.pay("tok_timeoutCapture"), counter.pay("tok_timeoutRefund")
        for id in (captured, refunded):
            counter.until(id, "Authorised")
            counter.tell(id, "capture", 700)
        counter.until(refunded, "Captured")
        counter.tell(refunded, "refund", 300)
        authorised = counter.pay("tok_timeoutCharged")
        ids = (captured, refunded, authorised)

        def theirs() -> list[Any]:
            found = [counter.theirs(id) for id in ids]
            return [(one.get("status"), one.get("captured"), one.get("refunded")) for one in found]

        done = [("authorised", 700, 0), ("authorised", 700, 300), ("authorised", 0, 0)]
        wait_for(lambda: theirs() == done, "everything is done at the gateway")
        outcomes = dict(zip(ids, ("Captured", "Refunded", "Authorised"), strict=True))
        assert not any(outcome in counter.kinds(id) for id, outcome in outcomes.items())
        counter.platform.kill("sagas")
        counter.platform.start("sagas")
        for id, outcome in outcomes.items():
            counter.until(id, outcome)
            assert counter.kinds(id).count(outcome) == 1
        assert theirs() == done
        assert [len(counter.theirs(id)["operations"]) for id in ids] == [1, 2, 0]
