"""Hosts of the tests' own on one machine: network namespaces on a switch, whose cables a test may pull.

The tests' process has a line of its own to each (``front``), which is no part of the switch. Host name and boot id
are a host's own, too, so that nothing that holds within one machine alone (loopback, what `app.store.workplace` knows
a machine by) can help two of them.
"""

import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

MOST = 8  # hosts of a network
START = 'hostname "$1" && mount --bind "$2" /proc/sys/kernel/random/boot_id && shift 2 && exec "$@"'


class NoHosts(Exception):
    """None can be made on this machine."""


class Host:
    """``address`` is its own at the switch, ``front`` at the line to this process."""

    def __init__(self, network: "Network", number: int) -> None:
        self.name = f"{network.name}-{number}"
        self.address = f"10.0.0.{number}"
        self.front = f"{network.front}.{4 * number + 2}"
        self._boot_id = network.folder / self.name
        self._boot_id.write_text(f"{uuid4()}\n")
        self._switch = network.switch
        self._port = f"port{number}"
        network.spaces.append(self.name)
        line, at_line = f"{network.name}f{number}", f"{network.front}.{4 * number + 1}/30"
        _ip(
            f"netns add {self.name}",
            f"link add {line} type veth peer front netns {self.name}",
            f"address add {at_line} dev {line}",
            f"link set {line} up",
            f"link add {self._port} netns {self._switch} type veth peer eth0 netns {self.name}",
        )
        _ip(f"link set {self._port} up master switch", space=self._switch)
        _ip(
            f"address add {self.front}/30 dev front",
            f"address add {self.address}/24 dev eth0",
            f"link set eth0 address {_hardware(number)}",
            *(f"link set {device} up" for device in ("lo", "front", "eth0")),
            # known as a router on the way would be: nobody finds out that a host is gone by asking for its address
            *(
                f"neighbour add 10.0.0.{other} lladdr {_hardware(other)} dev eth0 nud permanent"
                for other in range(MOST)
                if other != number
            ),
            space=self.name,
        )

    @property
    def launcher(self) -> Sequence[str]:
        """Given a command, runs it there, as the same process."""
        there = ("nsenter", f"--net=/run/netns/{self.name}", "unshare", "--uts", "--mount")
        return (*there, "sh", "-c", START, "sh", self.name, str(self._boot_id))

    def silence(self) -> None:
        """From now on the switch drops whatever comes from it or is for it, and nobody is told."""
        _ip(f"link set {self._port} nomaster", space=self._switch)

    def mend(self) -> None:
        _ip(f"link set {self._port} master switch", space=self._switch)

    def unplug(self) -> None:
        """Its link goes down, which it sees."""
        _ip("link set eth0 down", space=self.name)

    def plug_in(self) -> None:
        _ip("link set eth0 up", space=self.name)


class Network:
    """A switch, and the hosts at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"ds{secrets.token_hex(3)}"
        self.front = f"10.{128 + secrets.randbelow(120)}.{secrets.randbelow(256)}"
        self.switch = f"{self.name}-switch"
        self.spaces: list[str] = []

    def open(self) -> None:
        """Raises NoHosts."""
        try:
            _ip(f"netns add {self.switch}")
            self.spaces.append(self.switch)
            _ip("link add switch type bridge", "link set switch up", space=self.switch)
            trial = Host(self, 0)
            subprocess.run([*trial.launcher, "true"], check=True, capture_output=True, text=True, timeout=60)
        except FileNotFoundError as error:
            raise NoHosts(f"{error.filename} is not on this machine") from error
        except subprocess.CalledProcessError as error:
            raise NoHosts(f"this machine makes no network namespaces: {error.stderr.strip()}") from error

    def host(self) -> Host:
        """Another one."""
        return Host(self, len(self.spaces) - 1)

    def close(self) -> None:
        for space in self.spaces:  # and with them their links
            with suppress(subprocess.CalledProcessError):
                _ip(f"netns delete {space}")


@contextmanager
def network() -> Iterator[Network]:
    """Raises NoHosts where there can be none."""
    with tempfile.TemporaryDirectory(prefix="dictserve-hosts-") as folder:
        network = Network(Path(folder))
        try:
            network.open()
            yield network
        finally:
            network.close()


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    try:
        with network() as made:
            yield made
    except NoHosts as error:
        pytest.skip(str(error))


def _hardware(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def _ip(*commands: str, space: str | None = None) -> None:
    """Commands of ``ip``, in a network namespace."""
    where = () if space is None else ("-netns", space)
    told = "\n".join(commands)
    subprocess.run(["ip", *where, "-batch", "-"], input=told, check=True, capture_output=True, text=True, timeout=60)
