"""Every setting of the service, in one class. Units are in the names.

Read from the environment (``DICTSERVE_PORT=9000``), overridden by the command line.
"""

import contextlib
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from app.store.object_store import CACHE_BYTES, LISTING_SECONDS, ObjectStore

LogFormat = Literal["text", "json"]

MIB = 1024 * 1024
PREFIX = "DICTSERVE_"
OF_CLIENTS = {"DICTSERVE_URL", "DICTSERVE_TOKEN"}
LARGEST = 2**63 - 1


class Settings(BaseSettings):
    """Settings of one service process; the description of each field is its documentation."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # it may be a password
    )

    host: str = Field("127.0.0.1", description="Address to listen on; beyond loopback only if you say so.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port to listen on; 0 takes a free one.")
    store: Path = Field(Path("models"), description="Directory of the dictionaries (the model store).")
    objects: str | None = Field(
        None,
        description="URL of an object store for the dictionaries (`s3://bucket/prefix`);"
        " `store` is then this service's own directory, for what is not dictionaries.",
    )
    objects_options: dict[str, Any] = Field(
        {}, description="JSON: what fsspec is told of the object store, beside the usual variables (`AWS_…`)."
    )
    objects_cache_bytes: PositiveInt = Field(
        CACHE_BYTES, description="Most bytes of copies of objects, kept in `store`."
    )
    objects_listing_seconds: NonNegativeFloat = Field(
        LISTING_SECONDS,
        description="Time after which what another service has published or removed is seen at the latest.",
    )
    data_dir: Path | None = Field(
        None, description="Directory whose npy files fits may name (`files`); none may where it is not set."
    )
    database_url: str | None = Field(
        None,
        description="URL of the jobs' database, where services on several machines share it:"
        " `postgresql://user:password@host/name?sslmode=verify-full&sslrootcert=ca.pem`;"
        " by default an SQLite file inside the store.",
    )
    devices: str = Field(
        "auto",
        description="Devices, with a worker for each: `auto` (every GPU, else the CPU), `cpu`, `cuda:0,cuda:1`,"
        " or `cpu:0,cpu:1`, workers that share the CPU's cores.",
    )

    tokens_file: Path | None = Field(
        None, description="File of the tokens that callers need (`dictserve token new`); without it none is needed."
    )
    allowed_hosts: str = Field(
        "",
        description="Host names that the service answers to, with commas in between; addresses and local names always"
        " work. Empty: any name; but without tokens, on loopback and (unless `insecure`) on Ray, local names alone.",
    )
    insecure: bool = Field(
        False, description="Listen beyond loopback without tokens: whoever reaches the port may do everything."
    )

    max_body_bytes: PositiveInt = Field(1024 * MIB, description="Largest request body.")
    max_json_bytes: PositiveInt = Field(
        64 * MIB, description="Largest JSON body (it is parsed in memory; send npy for more)."
    )
    bodies_bytes: PositiveInt = Field(
        2048 * MIB,
        description="Most bytes of request bodies in memory, together, and as many of answers, from before they are"
        " computed until they have been read; past it, 503, and 413 for one body by itself."
        " Activations of a fit go to the disk as they come, unless they are JSON.",
    )
    max_rows: PositiveInt = Field(10_000_000, description="Most rows of activations or codes in a request.")
    max_files: PositiveInt = Field(1000, description="Most files of a fit.")
    max_file_rows: PositiveInt = Field(100_000_000, description="Most rows of the files of a fit, together.")
    online_fit_bytes: NonNegativeInt = Field(
        4096 * MIB,
        description="Bytes of a fit's files and their codes, 4·rows·(features + concepts), past which it is an online"
        " fit: others hold up to three times as much.",
    )
    max_features: PositiveInt = Field(65_536, description="Most features (columns) of activations.")
    max_concepts: PositiveInt = Field(16_384, description="Most concepts of a dictionary.")
    max_iterations: PositiveInt = Field(100_000, description="Largest `max_iter` of a fit.")

    max_connections: PositiveInt = Field(1000, description="Most open connections; past it, 503.")
    max_header_bytes: PositiveInt = Field(64 * 1024, description="Most bytes of a request's line and headers.")
    header_seconds: PositiveFloat = Field(10, description="Longest time that a request's headers may take.")
    transfer_seconds: PositiveFloat = Field(
        30,
        description="Time that sending a body, or reading an answer, may take at whatever rate;"
        " beyond it, `min_bytes_per_second` must be kept up.",
    )
    min_bytes_per_second: PositiveInt = Field(
        1024, description="Least rate of a body or an answer; the connection of a slower client is closed."
    )
    keep_alive_seconds: PositiveInt = Field(
        75,
        description="Time after which an idle connection is closed: longer than what is in between keeps one.",
    )

    batch_rows: PositiveInt = Field(1024, description="Most rows that a worker solves in one go.")
    queue_bytes: PositiveInt = Field(
        1024 * MIB,
        description="Most bytes of requests and their answers waiting for a worker; past it, 503.",
    )
    queue_rows: PositiveInt = Field(1_000_000, description="Most rows waiting for a worker; past it, 503.")
    queue_jobs: PositiveInt = Field(1000, description="Most fits waiting for a worker; past it, 503.")
    cache_bytes: PositiveInt = Field(
        2048 * MIB, description="Most bytes of prepared dictionaries kept by each worker."
    )

    fits: bool = Field(
        True,
        description="Run the fits that wait; `false` leaves them to other processes on the same database and store.",
    )
    max_ranks: PositiveInt = Field(
        1, description="Most processes that a fit may ask to be shared out over (`ranks`)."
    )
    checkpoint_interval_seconds: NonNegativeFloat = Field(
        30,
        description="Time of fitting between two checkpoints, from which an interrupted fit goes on;"
        " 0: none, it starts again.",
    )
    lease_seconds: Annotated[float, Field(ge=1)] = Field(
        30, description="Time after which a service that does not answer loses the jobs that it runs to others."
    )
    job_retention_days: Annotated[float, Field(gt=0, le=36_525)] = Field(
        30, description="Age at which the record of an ended job is removed; at most 36525, a century."
    )

    worker_start_seconds: PositiveFloat = Field(600, description="Longest start of a worker before it is replaced.")
    worker_stale_seconds: PositiveFloat = Field(10, description="Heartbeat age from which a worker is not ready.")
    worker_hang_seconds: PositiveFloat = Field(300, description="Heartbeat age from which a worker is replaced.")
    progress_interval_seconds: PositiveFloat = Field(0.5, description="Time between two written progress records.")
    shutdown_grace_seconds: PositiveInt = Field(30, description="Time that requests in flight are given at a stop.")
    metrics_open: bool = Field(False, description="Let `/metrics` be read without a token.")
    access_log: bool = Field(False, description="Log a line for each request.")
    log_format: LogFormat = Field("text", description="`text` or `json`: how log lines are written, on stderr.")
    log_level: Annotated[str, Field(pattern="^(critical|error|warning|info|debug)$")] = Field(
        "info", description="`critical`, `error`, `warning`, `info` or `debug`."
    )

    @property
    def of_local_names(self) -> "Settings":
        """The same, answering to local names only where neither tokens nor names are set: else another site could
        point a name of its own at this machine (DNS rebinding), and its pages would get in."""
        if self.tokens_file is not None or self.allowed_hosts:
            return self
        return self.model_copy(update={"allowed_hosts": "localhost"})

    @property
    def object_store(self) -> ObjectStore | None:
        if self.objects is None:
            return None
        return ObjectStore(self.objects, self.objects_options, self.objects_cache_bytes, self.objects_listing_seconds)

    @field_validator("data_dir", mode="before")
    @classmethod
    def _none_where_empty(cls, value: object) -> object:
        """An empty path would be the directory that this was started in, with all that lies there."""
        return None if value == "" else value

    @field_validator("data_dir")
    @classmethod
    def _there_or_away(cls, value: Path | None) -> Path | None:
        """Refuses a directory that does not exist. One that merely does not answer now (a mount that is away) is
        taken: the fits that need it are told."""
        with contextlib.suppress(OSError):
            if value is not None and not value.is_dir():
                raise ValueError(f"there is no directory {value}")
        return value

    @field_validator("tokens_file")
    @classmethod
    def _a_file(cls, value: Path | None) -> Path | None:
        if value is not None and str(value) == ".":  # as an empty variable is read; without it nobody would need any
            raise ValueError("it is empty: name a file, or leave it out")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, value: str) -> str:
        for name in value.split(","):
            if name.strip() and not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?(:\d+)?", name.strip()):
                raise ValueError(f"{name.strip()!r} is no name of a host, as 'dict.example' is")
        return value

    @field_validator("*")
    @classmethod
    def _of_64_bits(cls, value: object) -> object:
        if isinstance(value, int) and value > LARGEST:  # a worker could not be told of it
            raise ValueError(f"{value} is more than {LARGEST}, the largest number of 64 bits")
        return value

    @field_validator("database_url")
    @classmethod
    def _a_known_database(cls, value: str | None) -> str | None:
        if value is not None and re.match(r"(sqlite|postgresql(\+pg8000)?)://", value) is None:
            scheme = value.partition(":")[0][:20]  # no more: what follows may be a password
            raise ValueError(f"{scheme!r} is not served: the URL begins with postgresql:// or sqlite:///")
        if value is not None and value.startswith("sqlite") and re.match(r"sqlite:///[^?:]", value) is None:
            raise ValueError("it names no file, as sqlite:////var/lib/jobs.sqlite3 does: jobs outlast the process")
        if value is not None and value.startswith("postgresql"):
            from app.jobs.postgres_url import driver_told  # takes a fifth of a second

            driver_told(value)
        return value

    @field_validator("store")
    @classmethod
    def _a_directory(cls, value: Path) -> Path:
        if str(value) == ".":  # what an empty variable is read as, too: dictionaries would land wherever this starts
            raise ValueError("it is empty, or the working directory: name a directory of its own")
        if re.match(r"\w+:/", str(value)):
            raise ValueError("it is no directory: the URL of an object store goes into DICTSERVE_OBJECTS")
        return value

    @field_validator("objects")
    @classmethod
    def _a_shared_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        protocol, separator, rest = value.partition("://")
        if not separator or not rest.strip("/"):
            raise ValueError("it is not the URL of an object store, as s3://bucket/prefix is")
        # a password may have slashes of its own; what is after the colon of a host is a port
        if re.match(r"[^/]*:(?!\d+(/|$)).*@", rest):
            raise ValueError("it has a password: credentials go into AWS_… or DICTSERVE_OBJECTS_OPTIONS")
        if protocol == "memory":
            raise ValueError("memory:// is one process's own, and the worker is another process")
        return value

    @field_validator("devices")
    @classmethod
    def _devices_of_one_kind(cls, value: str) -> str:
        devices = [device.strip() for device in value.split(",")]
        told = ",".join(devices)
        if re.fullmatch(r"auto|cpu|cuda|cpu:\d+(,cpu:\d+)*|cuda:\d+(,cuda:\d+)*", told) is None:
            raise ValueError(f"{value!r} is not `auto`, `cpu`, or a list as `cuda:0,cuda:1` or `cpu:0,cpu:1`")
        if len(set(devices)) < len(devices):
            raise ValueError(f"{value!r} names a device twice; each has one worker")
        return told

    @property
    def device_names(self) -> list[str]:
        """Each device of ``devices``; "auto" is the first worker's to find out."""
        return self.devices.split(",")


def settings_table() -> str:
    """Every setting as a row of a Markdown table."""
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `DICTSERVE_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def what_is_wrong(error: ValidationError | SettingsError, what: str = "setting") -> list[str]:
    """A line for each setting that is wrong."""
    if isinstance(error, SettingsError):  # of JSON that is none
        field = re.search(r'"(\w+)"', str(error))
        return [f"{what} {field[1] if field else 'of the environment'}: it is not JSON"]
    return [f"{' '.join([what, '.'.join(map(str, e['loc']))]).strip()}: {e['msg']}" for e in error.errors()]


def misspelt(environment: Iterable[str]) -> list[str]:
    """Of the variables that begin as settings do, what is to be said of those that are none."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | OF_CLIENTS
    told = []
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            meant = get_close_matches(name.upper(), known, 1, cutoff=0.8)
            told.append(f"{name} is no setting" + (f"; is {meant[0]} meant?" if meant else ""))
    return told
