"""What fraud rules say becomes cases of the domain fraud: each verdict once, whoever tells it and however often."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid5

from psycopg import sql

from aggregates.fraud import Case
from aggregates.kernel import Conflict, NotFound, Origin, Store
from aggregates.kernel.migrate import names
from streams.kernel.rules.host import Tell, Verdict


def told_to(store: Store) -> Tell:
    """Brings verdicts to a store. What it raises is what a command does."""

    async def tell(v: Verdict) -> None:
        id = Case.id_of(v.rule, v.version, v.event_id)
        origin = Origin(f"rule:{v.rule}@{v.version}", causation=v.event_id, command=uuid5(id, str(v.revision)))
        commands = store.commands(replace(origin, correlation=await _correlation(store, v) or origin.correlation))
        if v.hit is None:
            try:
                await commands.tell(id, Case.withdraw, v.revision)
            except NotFound:
                return  # it was gone before it was ever told
            return
        hit = v.hit
        try:
            await commands.open_as(
                id, Case, rule=v.rule, rule_version=v.version, subject=hit.subject, score=hit.score, why=hit.why,
                cause=v.event_id, cause_type=v.event_type, cause_of=v.id, happened_at=v.at, revision=v.revision,
            )  # fmt: skip
        except Conflict:
            await commands.tell(id, Case.revise, hit.subject, hit.score, hit.why, v.revision)

    return tell


async def _correlation(store: Store, v: Verdict) -> str:
    """That of the event which the verdict is of; "" where it is not. Raises `Unavailable`."""
    domain = v.event_type.partition(".")[0]
    async with store.database(domain).reading() as connection:
        query = sql.SQL("SELECT correlation_id FROM {events} WHERE (notification_id, event_id) = (%s, %s)")
        row = await (await connection.execute(query.format(**names(domain)), (v.position, v.event_id))).fetchone()
    return str(row[0]) if row else ""
