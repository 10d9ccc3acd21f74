"""The test gateway's own state, in SQLite: payments, their operations and the webhooks to be sent. Times are Unix seconds."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streams.gateways.test_gateway.cards import ACTION_S, CARDS, Kind

TABLES = """
CREATE TABLE IF NOT EXISTS payments (
    reference TEXT PRIMARY KEY, transaction_id TEXT NOT NULL, action TEXT UNIQUE, token TEXT NOT NULL,
    amount INTEGER NOT NULL, currency TEXT NOT NULL, status TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL,
    expires_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS payments_expire ON payments (expires_at) WHERE status IN ('authorised', 'requires_action');
CREATE TABLE IF NOT EXISTS operations (
    payment TEXT NOT NULL, reference TEXT NOT NULL, kind TEXT NOT NULL, amount INTEGER NOT NULL, status TEXT NOT NULL,
    code TEXT NOT NULL, reason TEXT NOT NULL, done_at REAL NOT NULL DEFAULT 0,
    reversed_at REAL NOT NULL DEFAULT 0, PRIMARY KEY (payment, reference)
);
CREATE TABLE IF NOT EXISTS methods (customer TEXT NOT NULL, token TEXT NOT NULL, PRIMARY KEY (customer, token));
CREATE TABLE IF NOT EXISTS errors (operation TEXT PRIMARY KEY, error TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tries (payment TEXT NOT NULL, kind TEXT NOT NULL, tries INTEGER NOT NULL, PRIMARY KEY (payment, kind));
CREATE TABLE IF NOT EXISTS webhooks (
    id TEXT NOT NULL, copy INTEGER NOT NULL, payment TEXT NOT NULL, body BLOB NOT NULL, due REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, sent_at REAL, PRIMARY KEY (id, copy)
);
CREATE INDEX IF NOT EXISTS webhooks_due ON webhooks (due) WHERE sent_at IS NULL;
CREATE INDEX IF NOT EXISTS webhooks_payment ON webhooks (payment);
"""
WEBHOOK_TRIES_MAX = 50
WEBHOOK_AGAIN_S = (0.5, 60.0)  # first and longest pause between two tries


class Wrong(Exception):
    """The request makes no sense: 404 or 409."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Book:
    """Every method is one transaction, on the disk when it returns; what was asked before is answered as it was then."""

    def __init__(self, path: Path, address: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._address = address
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(TABLES)
        known = {row["name"] for row in self._db.execute("PRAGMA table_info(operations)")}
        for added in {"done_at", "reversed_at"} - known:
            self._db.execute(f"ALTER TABLE operations ADD COLUMN {added} REAL NOT NULL DEFAULT 0")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _commit(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def tried(self, payment: str, kind: Kind) -> int:
        """Counts a request; how many of this kind there were for the payment, this one included."""
        with self._commit():
            row = self._db.execute(
                "INSERT INTO tries VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET tries = tries + 1 RETURNING tries",
                (payment, kind),
            ).fetchone()
        return int(row[0])

    def token(self, payment: str) -> str | None:
        """The token that a payment was asked for with."""
        row = self._db.execute("SELECT token FROM payments WHERE reference = ?", (payment,)).fetchone()
        return None if row is None else str(row[0])

    def authorise(self, reference: str, amount: int, currency: str, token: str, now: float) -> dict[str, Any]:
        with self._commit():
            found = self._find(reference)
            if found is not None:
                if found["token"] and (found["amount"], found["currency"], found["token"]) != (amount, currency, token):
                    raise Wrong(409, "this reference was used for another payment")
                return self._document(reference)
            card = CARDS[token]
            code, reason = card.refuses.get("authorise", ("", ""))
            status = "declined" if code else "requires_action" if card.action else "authorised"
            transaction, action = f"txn_{secrets.token_hex(12)}", secrets.token_urlsafe(24) if card.action else None
            expires_at = now + (ACTION_S if card.action else card.life_s)
            self._db.execute(
                "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (reference, transaction, action, token, amount, currency, status, code, reason, expires_at),
            )
            return self._changed(reference, status, now)

    def decide(self, action: str, approved: bool, now: float) -> dict[str, Any]:
        """The customer's answer at the action's page. The first one counts."""
        with self._commit():
            row = self._db.execute(
                "SELECT reference, status, token FROM payments WHERE action = ?", (action,)
            ).fetchone()
            if row is None:
                raise Wrong(404, "there is no such action")
            if row["status"] != "requires_action":
                return self._document(row["reference"])
            status = "authorised" if approved else "declined"
            code, reason = ("", "") if approved else ("authentication_failed", "The customer did not confirm.")
            self._db.execute(
                "UPDATE payments SET status = ?, code = ?, reason = ?, expires_at = ? WHERE action = ?",
                (status, code, reason, now + CARDS[row["token"]].life_s, action),
            )
            return self._changed(row["reference"], status, now)

    def capture(self, payment: str, reference: str, amount: int, now: float) -> dict[str, Any]:
        with self._commit():
            row, asked = self._operation(payment, reference, "capture", amount)
            if not asked:
                code, reason = CARDS[row["token"]].refuses.get("capture", ("", ""))
                left = row["amount"] - self._sum(payment, "capture")
                if row["status"] not in ("authorised", "captured"):
                    code, reason = "not_authorised", f"The payment is {row['status']}."
                elif amount > left:
                    code, reason = "amount_too_large", "More than is authorised."
                if not code and amount == left:
                    self._db.execute("UPDATE payments SET status = 'captured' WHERE reference = ?", (payment,))
                self._record(payment, reference, "capture", amount, code, reason, now)
            return self._document(payment)

    def refund(self, payment: str, reference: str, amount: int, now: float) -> dict[str, Any]:
        with self._commit():
            row, asked = self._operation(payment, reference, "refund", amount)
            if not asked:
                code, reason = CARDS[row["token"]].refuses.get("refund", ("", ""))
                if amount > self._sum(payment, "capture") - self._sum(payment, "refund"):
                    code, reason = "amount_too_large", "More than is captured."
                self._record(payment, reference, "refund", amount, code, reason, now)
            return self._document(payment)

    def reverse(self, operation: str, now: float) -> dict[str, Any]:
        """A capture or a refund that was done fails after all. What was captured is held again, unless its time is up."""
        with self._commit():
            row = self._db.execute(
                "SELECT payment, kind, status FROM operations WHERE reference = ? AND status IN ('done', 'reversed')",
                (operation,),
            ).fetchone()
            if row is None:
                raise Wrong(404, "no capture or refund that was done has this reference")
            payment, kind = row["payment"], row["kind"]
            if row["status"] == "reversed":
                return self._document(payment)
            self._db.execute(
                "UPDATE operations SET status = 'reversed', code = ?, reason = ?, reversed_at = ?"
                " WHERE (payment, reference) = (?, ?)",
                (f"{kind}_reversed", "The bank has taken it back.", now, payment, operation),
            )
            if kind == "capture":
                self._db.execute(
                    "UPDATE payments SET status = CASE WHEN expires_at > ? THEN 'authorised' ELSE 'voided' END"
                    " WHERE reference = ? AND status = 'captured'",
                    (now, payment),
                )
            return self._changed(payment, f"{kind}.reversed", now)

    def void(self, payment: str, now: float) -> dict[str, Any]:
        """Gives back what is held. An unknown reference is closed: an authorise that comes late finds it voided. What is captured, and
        reversed later, is not held again."""
        with self._commit():
            row = self._find(payment)
            if row is None:
                self._db.execute(
                    "INSERT INTO payments VALUES (?, '', NULL, '', 0, '', 'voided', '', '', ?)", (payment, now)
                )
            elif row["status"] in ("authorised", "requires_action"):
                self._void(payment, now)
            elif row["status"] == "captured":
                self._db.execute(
                    "UPDATE payments SET expires_at = min(expires_at, ?) WHERE reference = ?", (now, payment)
                )
            return self._document(payment)

    def find(self, reference: str) -> dict[str, Any] | None:
        return None if self._find(reference) is None else self._document(reference)

    def expire(self, now: float) -> None:
        """Voids what has run out."""
        with self._commit():
            rows = self._db.execute(
                "SELECT reference FROM payments WHERE status IN ('authorised', 'requires_action') AND expires_at <= ?",
                (now,),
            ).fetchall()
            for row in rows:
                self._void(row["reference"], now)

    def totals(self) -> dict[str, dict[str, int]]:
        """By currency, in minor units: what is held, captured and refunded; and the number of payments."""
        rows = self._db.execute(
            """
            WITH sums AS (
                SELECT p.reference, p.currency, p.amount, p.status,
                    coalesce(sum(o.amount) FILTER (WHERE o.kind = 'capture' AND o.status = 'done'), 0) AS captured,
                    coalesce(sum(o.amount) FILTER (WHERE o.kind = 'refund' AND o.status = 'done'), 0) AS refunded
                FROM payments p LEFT JOIN operations o ON o.payment = p.reference WHERE p.token <> '' GROUP BY p.reference
            )
            SELECT currency, count(*) AS payments, sum(captured) AS captured, sum(refunded) AS refunded,
                coalesce(sum(amount - captured) FILTER (WHERE status = 'authorised'), 0) AS held
            FROM sums GROUP BY currency
            """
        ).fetchall()
        return {
            row["currency"]: {name: row[name] for name in ("payments", "held", "captured", "refunded")} for row in rows
        }

    def attach(self, customer: str, token: str) -> dict[str, Any]:
        with self._commit():
            self._db.execute("INSERT OR IGNORE INTO methods VALUES (?, ?)", (customer, token))
            return self.methods(customer)

    def detach(self, customer: str, token: str | None) -> dict[str, Any]:
        """`token` None: all."""
        with self._commit():
            self._db.execute("DELETE FROM methods WHERE customer = ? AND token = coalesce(?, token)", (customer, token))
            return self.methods(customer)

    def methods(self, customer: str) -> dict[str, Any]:
        """What is kept for a customer."""
        rows = self._db.execute("SELECT token FROM methods WHERE customer = ? ORDER BY token", (customer,)).fetchall()
        return {"methods": [row["token"] for row in rows]}

    def settled(self, first: float, end: float) -> list[sqlite3.Row]:
        """What was captured and refunded in a span of time, and what was reversed, with the error that a report is to make of it, if any."""
        return self._db.execute(
            "WITH moved AS ("
            " SELECT rowid AS n, payment, reference, kind, amount, done_at AS at FROM operations WHERE status IN ('done', 'reversed')"
            " UNION ALL SELECT rowid, payment, reference, kind || ' reversed', amount, reversed_at FROM operations"
            " WHERE status = 'reversed')"
            " SELECT m.*, p.currency, e.error FROM moved m JOIN payments p ON p.reference = m.payment"
            " LEFT JOIN errors e ON e.operation = m.reference WHERE m.at >= ? AND m.at < ? ORDER BY m.at, m.n",
            (first, end),
        ).fetchall()

    def err(self, operation: str, error: str) -> None:
        """From now on the reports are wrong about it."""
        with self._commit():
            self._db.execute("INSERT OR REPLACE INTO errors VALUES (?, ?)", (operation, error))

    def due(self, now: float, limit: int) -> list[tuple[str, int, bytes]]:
        """Webhooks to be sent: (id, copy, body)."""
        rows = self._db.execute(
            "SELECT id, copy, body FROM webhooks WHERE sent_at IS NULL AND due <= ? ORDER BY due LIMIT ?", (now, limit)
        )
        return [(row["id"], row["copy"], row["body"]) for row in rows]

    def sent(self, id: str, copy: int, accepted: bool, now: float) -> None:
        """The answer to a webhook; one that was not accepted is sent again, ever more rarely."""
        first, longest = WEBHOOK_AGAIN_S
        with self._commit():
            if accepted:
                self._db.execute("UPDATE webhooks SET sent_at = ? WHERE (id, copy) = (?, ?)", (now, id, copy))
                return
            row = self._db.execute(
                "UPDATE webhooks SET tries = tries + 1, due = ? + min(? * (1 << min(tries, 10)), ?)"
                " WHERE (id, copy) = (?, ?) RETURNING tries",
                (now, first, longest, id, copy),
            ).fetchone()
            if row[0] >= WEBHOOK_TRIES_MAX:
                self._db.execute("DELETE FROM webhooks WHERE (id, copy) = (?, ?)", (id, copy))

    def next(self) -> float | None:
        """When something is to be done next."""
        row = self._db.execute(
            "SELECT min((SELECT coalesce(min(due), 9e18) FROM webhooks WHERE sent_at IS NULL), (SELECT coalesce(min(expires_at), 9e18)"
            " FROM payments WHERE status IN ('authorised', 'requires_action')))"
        ).fetchone()
        return None if row[0] >= 9e18 else float(row[0])

    def _find(self, reference: str) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self._db.execute(
            "SELECT * FROM payments WHERE reference = ?", (reference,)
        ).fetchone()
        return found

    def _operation(self, payment: str, reference: str, kind: Kind, amount: int) -> tuple[sqlite3.Row, bool]:
        row = self._find(payment)
        if row is None or not row["token"]:
            raise Wrong(404, "there is no such payment")
        asked = self._db.execute(
            "SELECT kind, amount FROM operations WHERE (payment, reference) = (?, ?)", (payment, reference)
        ).fetchone()
        if asked is not None and (asked["kind"], asked["amount"]) != (kind, amount):
            raise Wrong(409, "this reference was used for something else")
        return row, asked is not None

    def _record(
        self, payment: str, reference: str, kind: Kind, amount: int, code: str, reason: str, now: float
    ) -> None:
        status = "failed" if code else "done"
        self._db.execute(
            "INSERT INTO operations (payment, reference, kind, amount, status, code, reason, done_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (payment, reference, kind, amount, status, code, reason, now),
        )
        self._changed(payment, f"{kind}.{status}", now)

    def _void(self, payment: str, now: float) -> None:
        self._db.execute("UPDATE payments SET status = 'voided' WHERE reference = ?", (payment,))
        self._changed(payment, "voided", now)

    def _sum(self, payment: str, kind: Kind) -> int:
        row = self._db.execute(
            "SELECT coalesce(sum(amount), 0) FROM operations WHERE (payment, kind, status) = (?, ?, 'done')",
            (payment, kind),
        ).fetchone()
        return int(row[0])

    def _changed(self, payment: str, what: str, now: float) -> dict[str, Any]:
        """Queues the webhook of a change, in the same commit."""
        document = self._document(payment)
        row = self._db.execute(
            "SELECT token, (SELECT count(*) FROM webhooks WHERE payment = ?) FROM payments WHERE reference = ?",
            (payment, payment),
        ).fetchone()
        card, earlier = CARDS[row[0]], row[1]
        id = f"evt_{secrets.token_hex(12)}"
        body = json.dumps({"id": id, "type": f"payment.{what}", "created": int(now), "payment": document}).encode()
        due = now if earlier else now + card.first_webhook_s
        for copy in range(card.webhook_copies):
            self._db.execute(
                "INSERT INTO webhooks (id, copy, payment, body, due) VALUES (?, ?, ?, ?, ?)",
                (id, copy, payment, body, due),
            )
        return document

    def _document(self, reference: str) -> dict[str, Any]:
        """A payment as the gateway shows it: in answers, look-ups and webhooks alike."""
        row = self._find(reference)
        assert row is not None
        operations = self._db.execute(
            "SELECT reference, kind, amount, status, code, reason FROM operations WHERE payment = ? ORDER BY rowid",
            (reference,),
        ).fetchall()
        shown = ("reference", "amount", "currency", "status", "code", "reason", "expires_at")
        return {
            **{name: row[name] for name in shown},
            "transaction": row["transaction_id"],
            "action_url": f"{self._address}/actions/{row['action']}" if row["status"] == "requires_action" else None,
            "captured": self._sum(reference, "capture"),
            "refunded": self._sum(reference, "refund"),
            "operations": [dict(one) for one in operations],
        }
