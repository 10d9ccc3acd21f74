"""Mails: written once the event asks for one, with what the answer needs, by whichever sender there is."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

import streams.mailing
from aggregates.auth import Account
from aggregates.kernel import Origin, Recorded, Store, Unavailable, clock
from aggregates.kernel.clock import new_id
from aggregates.kernel.migrate import migrate as migrate_events
from api.kernel.migrate import migrate as migrate_api
from api.kernel.secrets import Secrets
from api.kernel.vault import Vault, read_master_key
from infra.settings import Settings
from infra.token import make_keys
from streams.kernel.mail import Rejected, Unsent, message, sender
from streams.mailing import Intent, mail
from tests.kernel.topic import settings_of

ADA = "ada@example.com"


@pytest.fixture
def own(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = settings_of(postgres, "redis://127.0.0.1:9", tmp_path)
    make_keys(made)
    migrate_api(made)
    migrate_events(postgres, ["auth"])
    monkeypatch.setattr(streams.mailing, "settings", lambda: made)
    return made


async def registered(own: Settings, store: Store) -> Recorded[Intent]:
    """An account whose verification waits to be mailed."""
    async with AsyncConnectionPool(
        own.postgres, connection_class=psycopg.AsyncConnection, min_size=1, max_size=1, open=False
    ) as pool:
        id = new_id()
        email = await Vault(pool, read_master_key(own.master_key)).seal(id, ADA)
    commands = store.commands(Origin(actor="user:test"))
    await commands.open_as(id, Account.register, email, "digest", new_id(), new_id(), clock.now())
    [_, asked] = await store.history(Account, id)
    return asked  # type: ignore[return-value]


def test_a_mail_holds_what_its_answer_needs_and_is_sent_once(own: Settings) -> None:
    async def send() -> tuple[UUID, UUID, bytes]:
        async with Store.open(own.postgres) as store:
            asked = await registered(own, store)
            commands = store.commands(Origin(actor="reactor.mailing"))
            await mail.call(asked, commands)
            [file] = (own.data / "mail").glob("*.eml")
            read = file.read_bytes()
            file.unlink()
            await mail.call(asked, commands)  # the follower died before it knew
            return asked.event.id, asked.event.intent, read

    account, intent, read = asyncio.run(send())
    assert not list((own.data / "mail").glob("*.eml"))
    one = message_from_bytes(read)
    assert (one["To"], one["Auto-Submitted"]) == (ADA, "auto-generated")
    assert one["Message-ID"] == f"<{intent}@127.0.0.1>"
    token = next(line for line in str(one.get_payload()).splitlines() if len(line) == 86)
    assert Secrets(None, read_master_key(own.master_key)).proven("verify", token) == (account, intent)  # type: ignore[arg-type]


def test_a_server_that_is_away_is_asked_again(own: Settings) -> None:
    away = own.model_copy(update={"mail": "smtp://127.0.0.1:9"})

    async def send() -> None:
        async with Store.open(own.postgres) as store:
            asked, commands = await registered(own, store), store.commands(Origin(actor="reactor.mailing"))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(streams.mailing, "settings", lambda: away)
                with pytest.raises(Unavailable):
                    await mail.call(asked, commands)
            await mail.call(asked, commands)
            account = await store.load(Account, asked.event.id)
            assert account.mailed == {asked.event.intent}

    asyncio.run(send())
    assert len(list((own.data / "mail").glob("*.eml"))) == 1


class Postman(socketserver.StreamRequestHandler):
    """Just enough of SMTP (RFC 5321) to take a mail, or not."""

    def handle(self) -> None:
        self.say("220 here")
        while line := self.rfile.readline().decode().strip():
            match line.split(" ")[0].upper():
                case "RCPT" if "nobody" in line:
                    self.say("550 no such mailbox")
                case "RCPT" if "full" in line:
                    self.say("452 the mailbox is full")
                case "DATA":
                    self.say("354 go on")
                    body = b""
                    while (part := self.rfile.readline()) != b".\r\n":
                        body += part
                    TAKEN.append(body)
                    self.say("250 taken")
                case "QUIT":
                    self.say("221 bye")
                    return
                case _:
                    self.say("250 fine")

    def say(self, words: str) -> None:
        self.wfile.write(words.encode() + b"\r\n")


TAKEN: list[bytes] = []


@contextmanager
def postman() -> Iterator[str]:
    with socketserver.TCPServer(("127.0.0.1", 0), Postman) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"smtp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_mail_server_takes_it_or_says_why_not() -> None:
    with postman() as url:
        of = Settings(mail=url)
        for to, error in ((ADA, None), ("nobody@example.com", Rejected), ("full@example.com", Unsent)):
            made = message(of, uuid4(), to, "Grüße", "Höchst vertraulich\n")
            if error is None:
                asyncio.run(sender(of).send(made))
            else:
                with pytest.raises(error) as told:
                    asyncio.run(sender(of).send(made))
                assert type(told.value) is error
    [taken] = TAKEN
    assert message_from_bytes(taken)["To"] == ADA


@pytest.mark.parametrize("url", ["http://mail", "smtp://", "mail.example.com"])
def test_what_is_no_mail_server_is_said_so(url: str) -> None:
    with pytest.raises(ValueError, match=r"mail\n.*write it as smtp"):
        Settings(mail=url)
