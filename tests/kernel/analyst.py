"""Statements as the user `analyst` of a ClickHouse server, by the engine itself: `python -m tests.kernel.analyst ANALYST.XML FOLDER`.

A JSON list of statements on standard input; a list of what each is answered with on standard output, an error by its name. There are
tables `default.sales`, where x is 7, and `other.secrets`. chDB makes every connection the user `default`, so that one is here what the
file makes of `analyst`; the file itself is read beside it, its password out of the environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

sys.modules["pyarrow"] = None  # type: ignore[assignment]  # chDB would load it for a function that is not used here

from chdb import _chdb  # noqa: E402

USERS = "<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users>{}</users></clickhouse>"
ANYTHING = (
    "<default><no_password/><profile>default</profile><quota>default</quota><networks><ip>::/0</ip></networks>"
    "<grants><query>GRANT ALL ON *.*</query></grants></default>"
)
MADE = (
    "DETACH DATABASE default",  # chDB lays local files under it; as on a server it is a plain one
    "CREATE DATABASE default ENGINE = Atomic",
    "CREATE DATABASE other",
    "CREATE TABLE default.sales ENGINE = MergeTree ORDER BY x AS SELECT 7 AS x",
    "CREATE TABLE other.secrets ENGINE = MergeTree ORDER BY x AS SELECT 1 AS x",
)


def main(analyst: Path, folder: Path) -> None:
    connect = vars(_chdb)["connect"]
    config, users, more = folder / "config.xml", folder / "users.xml", folder / "users.d"
    config.write_text(f"<clickhouse><users_config>{users}</users_config></clickhouse>")
    where = f"{folder / 'store'}?config-file={config}"
    users.write_text(USERS.format(ANYTHING))
    connection = connect(where)
    for statement in MADE:
        connection.query(statement, "Null")
    connection.close()
    tree = ElementTree.parse(analyst)
    user = tree.find("users/analyst")
    password = user.find("password") if user is not None else None
    assert user is not None and password is not None
    user.remove(password)
    ElementTree.SubElement(user, "no_password")
    user.tag = "default"
    more.mkdir()
    (more / "analyst.xml").write_text(analyst.read_text())
    tree.write(more / "default.xml")
    users.write_text(USERS.format(""))
    connection = connect(where)
    told = []
    for statement in json.load(sys.stdin):
        try:
            told.append(connection.query(statement, "TSVRaw").bytes().decode().strip())
        except RuntimeError as error:
            told.append(str(error).rpartition("(")[2].rstrip(")"))
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
