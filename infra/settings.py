"""Where the servers are and how the platform is set up: from TITAN_* variables, else from the running local stack."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from infra.errors import StackError

ROOT = Path(__file__).resolve().parent.parent
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
NAME = re.compile(r"[\w-]{1,40}")  # of what may be repeated: no password in a URL looks like that
IN_KAFKA = r"^[A-Za-z0-9._-]*$"  # what it allows in names


def data_folder() -> Path:
    """The one git-ignored folder of this clone: environment, servers' data, keys, logs, state."""
    return Path(os.environ.get("TITAN_DATA") or ROOT / ".titan").resolve()


class Provider(BaseModel):
    """A provider of OpenID Connect whose accounts can be used here. `redirect_uri`: where it sends people back to."""

    issuer: str
    client_id: str
    client_secret: str
    redirect_uri: str


def _web(given: str) -> str:
    return given and _checked_url(given, ("http", "https"), "http[s]://host:port")


WebUrl = Annotated[str, AfterValidator(_web)]


class Settings(BaseSettings):
    """Every field can be set as TITAN_<NAME>. What is not set comes from the stack that `titan up` started here."""

    model_config = SettingsConfigDict(
        env_prefix="TITAN_", frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

    kafka: str = Field("127.0.0.1:9092", description="bootstrap servers, host:port[,host:port]")
    postgres: str = Field(
        "postgresql://titan@127.0.0.1:5432/titan", description="DSN of the event store and read models"
    )
    postgres_domains: dict[str, str] = Field(
        {}, description='DSNs of domains kept elsewhere: {"order": "postgresql://…"}'
    )
    redis: str = Field("redis://127.0.0.1:6379/0", description="URL; rediss:// for TLS")
    clickhouse: str = Field(
        "http://default@127.0.0.1:8123/default", description="http(s)://user:password@host:port/database"
    )
    schema_registry_url: WebUrl | None = Field(
        None,
        validation_alias=AliasChoices("TITAN_SCHEMA_REGISTRY_URL", "SCHEMA_REGISTRY_URL", "schema_registry_url"),
        description="an external Confluent Schema Registry; without it the API serves the protocol itself",
    )

    namespace: str = Field(
        "titan", pattern=IN_KAFKA, min_length=1, description="prefix of consumer groups, advisory locks and Redis keys"
    )
    topic_prefix: str = Field("titan.", pattern=IN_KAFKA, description="an event topic is this and the domain")
    partitions: int = Field(4, ge=1, le=1024, description="of a new topic")
    replication: int = Field(1, ge=1, le=10, description="of a new topic; 3 on a real cluster")

    kafka_session_s: float = Field(
        10,
        ge=1,
        le=300,
        description="the partitions of a worker, a saga's or a Faust process that was not heard of for so long are another's; "
        "not below the broker's group.min.session.timeout.ms, 6 s by default",
    )
    kafka_refresh_s: float = Field(
        10, ge=0.1, le=300, description="how soon a consumer finds a topic that was made, and notices that one is gone"
    )

    abandoned_after_s: float = Field(3600, gt=0, description="a cart that nobody touches for so long is abandoned")

    instance: str | None = Field(
        None,
        description="this process's name among those of its role: restarted under the same one, it goes on at once "
        "instead of after its predecessor's session has run out. No two may have the same at a time",
    )
    data: Path = Field(default_factory=data_folder, description="folder for keys, logs and state")
    api_host: str = "127.0.0.1"
    api_port: int = Field(8000, ge=1, le=65535)
    public_url: WebUrl | None = Field(
        None,
        description="where clients reach the API, https://… behind a proxy; the issuer of the tokens of its own accounts",
    )
    jwt_issuer: str = Field("titan", description="of the tokens whose keys are in the file below")
    jwt_audience: str = "titan-api"
    jwt_jwks: Path = Field(
        default_factory=lambda: data_folder() / "keys" / "jwks.json", description="public keys that the API accepts"
    )
    jwt_private_key: Path = Field(
        default_factory=lambda: data_folder() / "keys" / "jwt.json",
        description="private JWK that `titan token` signs with",
    )
    master_key: Path = Field(
        default_factory=lambda: data_folder() / "keys" / "master",
        description="32 bytes, base64: wraps the keys of personal data",
    )
    oidc_providers: dict[str, Provider] = Field(
        {},
        description='{"partner": {"issuer": "https://…", "client_id": …, "client_secret": …, "redirect_uri": …}}: '
        "whose accounts sign people in here",
    )
    mail: str = Field(
        "", description="smtp://user:password@host:port, smtps:// for TLS; without it mails are files in <data>/mail"
    )
    mail_from: str = Field("Titan Commerce <no-reply@titan.invalid>", description="the sender of mails")
    log_level: str = "info"

    # Nonsense is refused where it comes in: each client says it at another moment, in other words. None of it is repeated, for
    # there may be a password in it.

    @field_validator("kafka")
    @classmethod
    def _brokers(cls, given: str) -> str:
        for one in given.split(","):
            host, _, port = one.strip().rpartition(":")
            if not host or not port.isdigit():
                _refuse("host:port[,host:port]")
        return given

    @field_validator("postgres")
    @classmethod
    def _dsn(cls, given: str) -> str:
        return _checked_dsn(given)

    @field_validator("postgres_domains")
    @classmethod
    def _dsns(cls, given: dict[str, str]) -> dict[str, str]:
        return {domain: _checked_dsn(dsn) for domain, dsn in given.items()}

    @field_validator("mail")
    @classmethod
    def _mail(cls, given: str) -> str:
        return given and _checked_url(given, ("smtp", "smtps"), "smtp[s]://[user:password@]host:port")

    @field_validator("log_level")
    @classmethod
    def _level(cls, given: str) -> str:
        if given.lower() not in LOG_LEVELS:
            _refuse(f"one of {', '.join(LOG_LEVELS)}")
        return given

    @field_validator("redis")
    @classmethod
    def _redis(cls, given: str) -> str:
        return _checked_url(given, ("redis", "rediss", "unix"), "redis://[user:password@]host:port/number")

    @field_validator("clickhouse")
    @classmethod
    def _clickhouse(cls, given: str) -> str:
        return _checked_url(given, ("http", "https"), "http://user:password@host:port/database")

    def dsn(self, domain: str) -> str:
        """The database of `domain`'s events."""
        return self.postgres_domains.get(domain, self.postgres)

    @property
    def issuer(self) -> str:
        """The issuer of our own tokens: the API's URL, without a slash at its end."""
        return (self.public_url or f"http://{self.api_host}:{self.api_port}").rstrip("/")

    def topic(self, domain: str) -> str:
        return f"{self.topic_prefix}{domain}"

    def member(self, group: str) -> dict[str, str]:
        """How a consumer of `group` is a member of it: a static one, if this process has a name."""
        paces = {
            "session.timeout.ms": str(round(1_000 * self.kafka_session_s)),
            "topic.metadata.refresh.interval.ms": str(round(1_000 * self.kafka_refresh_s)),
        }
        return {**paces, "group.instance.id": f"{group}.{self.instance}"} if self.instance else paces

    @property
    def min_insync_replicas(self) -> int:
        """One replica may be away without stopping writes; an acknowledged event is on all others."""
        return max(1, self.replication - 1)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, JsonConfigSettingsSource(settings_cls, json_file=running_file())


def _refuse(form: str) -> NoReturn:
    raise ValueError(f"write it as {form}")


def _checked_dsn(given: str) -> str:
    from psycopg import Error, conninfo  # not for who has no database of their own

    try:
        conninfo.conninfo_to_dict(given)
    except Error:
        _refuse("postgresql://user:password@host:port/database")
    return given


def _checked_url(given: str, schemes: tuple[str, ...], form: str) -> str:
    try:
        url = urlsplit(given)
        if url.scheme in schemes and (url.hostname or url.scheme == "unix") and url.port != 0:
            return given
    except ValueError:  # its port is no number
        pass
    _refuse(form)


def running_file() -> Path:
    """What the supervisor writes once the servers' addresses are known, and removes when it stops."""
    return data_folder() / "run" / "settings.json"


S = TypeVar("S", bound=Settings)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once. Raises `StackError`, one line, for what can't be meant."""
    return load(Settings)


def load(kind: type[S]) -> S:
    """The settings as they are now. Raises `StackError`, one line that repeats no value, for what can't be meant."""
    try:
        return kind()
    except ValidationError as error:
        raise refused(error) from None
    except SettingsError as error:  # it names the field in its words alone
        name = re.search(r'field "(\w+)"', str(error))
        raise StackError(f"TITAN_{name[1].upper() if name else '…'}: it is not JSON") from None
    except ValueError:  # whoever wrote the file was stopped by a power cut, or it was edited
        raise StackError(f"{running_file()} is damaged: remove it, or stop and start the stack") from None


def refused(error: ValidationError, within: Sequence[str] = ()) -> StackError:
    """What is wrong with which settings, in one line; `within`: where in the settings they were given."""
    told = []
    for one in error.errors(include_input=False, include_context=False, include_url=False):
        where = [part if NAME.fullmatch(part) else "…" for part in (*within, *map(str, one["loc"]))]
        if where:
            where[0] = f"TITAN_{where[0].upper().removeprefix('TITAN_')}"
        told.append(": ".join([*filter(None, [".".join(where)]), one["msg"].removeprefix("Value error, ")]))
    return StackError(" ".join("; ".join(told).split()))


def as_given(of: Settings) -> dict[str, Any]:
    """What was set, as JSON has it; secrets in the clear, files wherever one looks from."""

    def plain(value: object) -> object:
        match value:
            case SecretStr():
                return value.get_secret_value()
            case frozenset():
                return sorted(value)
            case Path():
                return str(value.absolute())
        raise TypeError(f"{type(value)} is no JSON")

    given = of.model_dump(exclude_unset=True, exclude={"instance"})  # that is each process's own
    told: dict[str, Any] = json.loads(json.dumps(given, default=plain))
    return told
