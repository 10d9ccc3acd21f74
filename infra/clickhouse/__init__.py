"""ClickHouse for one machine: the HTTP protocol of a ClickHouse server, spoken over in-process chDB.

`python -m infra.clickhouse --host 127.0.0.1 --port P --data DIR`; passwords come from the environment.
"""
