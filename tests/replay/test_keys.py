"""A copy of what no topic has: whole, for its owner alone, and put back with the store, without bringing anybody back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from api.kernel.migrate import migrate
from api.kernel.vault import ERASED
from replay.keys import put_back, save
from replay.log import ReplayError
from replay.store import restore
from tests.kernel.servers import Stack
from tests.kernel.tally import DOMAIN
from tests.replay.past import Past, dump, past

KEYS = "SELECT subject, wrapped, created_at FROM vault_keys ORDER BY 1"
SECRETS = "SELECT id, subject, kind, sealed, used, used_at, kept_at FROM secrets ORDER BY 1"
ADA, BOB = UUID(int=1), UUID(int=2)


@pytest.fixture(scope="module")
def gone(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """A store of tallies, and beside it the keys of two people and a secret of one."""
    with past(stack, tmp_path_factory.mktemp("past")) as made:
        migrate(made.settings)
        with psycopg.connect(made.settings.postgres) as connection:
            for subject in (ADA, BOB):
                connection.execute("INSERT INTO vault_keys VALUES (%s, %s)", [subject, b"\\.\n\0\t" + subject.bytes])
            connection.execute(
                "INSERT INTO secrets (id, subject, kind, sealed, used) VALUES (%s, %s, %s, %s, 3)",
                [UUID(int=3), ADA, "a\tkind\\\n\\.\n", b"sealed"],
            )
        yield made


def test_a_copy_comes_back_with_the_store(gone: Past, postgres: str, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    file.write_text("an older one")
    assert save(gone.settings.postgres, file) == {"vault_keys": 2, "secrets": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["copy"]
    assert file.stat().st_mode & 0o777 == 0o600
    restore(gone.settings, [DOMAIN], postgres, keys=file)
    for query in (KEYS, SECRETS):
        assert dump(postgres, query) == dump(gone.settings.postgres, query)


def test_who_is_erased_there_stays_erased(gone: Past, postgres: str, tmp_path: Path) -> None:
    save(gone.settings.postgres, tmp_path / "copy")
    migrate(gone.settings.model_copy(update={"postgres": postgres}))
    with psycopg.connect(postgres) as connection:
        connection.execute("INSERT INTO vault_keys VALUES (%s, %s)", [BOB, ERASED])
        assert put_back(connection, tmp_path / "copy") == {"vault_keys": 1, "secrets": 1}
    assert [bytes(wrapped) for _, wrapped, _ in dump(postgres, KEYS)][1] == ERASED  # type: ignore[call-overload]


def test_what_pg_dump_writes_is_taken(gone: Past, postgres: str, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    save(gone.settings.postgres, file)
    file.write_bytes(file.read_bytes().replace(b"COPY ", b"--\n-- Data\n--\n\nCOPY public.") + b"\n\n-- done\n")
    with psycopg.connect(postgres) as connection:
        assert put_back(connection, file) == {"vault_keys": 2, "secrets": 1}


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (lambda copy: copy[: copy.index(b"COPY secrets")], "is no copy of secrets"),
        (lambda copy: b"", "is no copy of secrets and vault_keys"),
        (lambda copy: copy[:-3], "is damaged .it ends in the middle"),
        (lambda copy: copy.replace(str(ADA).encode(), b"nobody"), "is damaged .*uuid"),
    ],
)
def test_a_damaged_copy_changes_nothing(gone: Past, postgres: str, tmp_path: Path, cut: object, why: str) -> None:
    file = tmp_path / "copy"
    save(gone.settings.postgres, file)
    assert callable(cut)
    file.write_bytes(cut(file.read_bytes()))
    with pytest.raises(ReplayError, match=why) as error:
        restore(gone.settings, [DOMAIN], postgres, keys=file)
    assert "\n" not in str(error.value)
    assert dump(postgres, "SELECT to_regclass('vault_keys')") == [(None,)]
    assert dump(postgres, "SELECT count(*) FROM tally_events") == [(0,)]


def test_a_copy_that_is_not_there_and_one_that_can_not_be_written(gone: Past, postgres: str, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="can't read .*none: No such file"):
        restore(gone.settings, [DOMAIN], postgres, keys=tmp_path / "none")
    with pytest.raises(ReplayError, match="can't write .*: No such file"):
        save(gone.settings.postgres, tmp_path / "none" / "copy")


def test_keys_do_not_get_into_a_database_of_one_domain(gone: Past, postgres: str, tmp_path: Path) -> None:
    apart = gone.settings.model_copy(update={"postgres_domains": {DOMAIN: postgres}})
    with pytest.raises(ReplayError, match="in the common database"):
        restore(apart, [DOMAIN], postgres, keys=tmp_path / "copy")
