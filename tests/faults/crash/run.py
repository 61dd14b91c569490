"""One run: load, kills and restarts, a last start, and every check."""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.asked import suspended
from tests.faults.crash import answers, disk
from tests.faults.crash.clients import SHARED, Caller, Client
from tests.faults.crash.log import Fault, Log, Operation, read_logs
from tests.faults.crash.service import Victim
from tests.postgres import Cluster

CLIENTS = 4
VICTIMS = {"worker": 4, "service": 3, "group": 3}  # how often each is killed, relatively
OF_POSTGRES = {"database": 3, "database held up": 2, "service held up": 1}  # what befalls it, beside these
HELD_UP_SECONDS = 14.0  # at most: past it the service has given connections up
SETTLE_SECONDS = 90.0
PRINT_SECONDS = 10.0


@dataclass
class Report:
    """What was done, and what was found."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    done: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    resumed: int = 0  # jobs that went on from a checkpoint
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {victim}" for victim, count in sorted(self.kills.items()))
        done = ", ".join(f"{count} {kind}" for kind, count in sorted(self.done.items()))
        return (
            f"seed {self.seed}, {self.seconds:.0f} s: "
            f"{self.kills.total()} kills ({kills}), {self.restarts} restarts; "
            f"{self.done.total()} operations acknowledged ({done}), {self.lost} unanswered; "
            f"{self.resumed} fits went on from a checkpoint; "
            f"{len(self.faults)} faults"
        )


class Killer:
    """Kills what its seed says, when it says, and starts it again."""

    def __init__(self, victim: Victim, folder: Path, seed: int, cluster: Cluster | None) -> None:
        self.log = Log(folder, "killer")
        self.kills: Counter[str] = Counter()
        self.restarts = -1  # the first start is none
        self.faults: list[Fault] = []
        self._victim = victim
        self._cluster = cluster
        self._victims = VICTIMS if cluster is None else VICTIMS | OF_POSTGRES
        self._random = random.Random(seed)
        self._dead_worker: int | None = None

    def kill(self) -> None:
        """Let it work for a while, mostly once it is ready, and kill."""
        if self._random.random() < 0.8:
            self.wait_ready()
            time.sleep(self._random.uniform(0, 0.8))
        else:
            time.sleep(self._random.uniform(0, 1.5))  # while it starts
        victim = self._random.choices(list(self._victims), list(self._victims.values()))[0]
        worker = self._victim.worker()
        if victim in OF_POSTGRES:
            self._disturb(victim)
        elif victim == "worker":
            if worker is None:
                return  # there is none just now; the next kill comes soon
            operation = self.log.ask("kill worker", pid=worker)
            os.kill(worker, signal.SIGKILL)
            self._dead_worker = worker
            self.log.answered(operation, 200)
        else:
            self.kill_service(victim)
            self.launch()
        self.kills[victim] += 1

    def _disturb(self, victim: str) -> None:
        """The jobs' database crashes, and is away for a while; or it, or the service, stands still."""
        assert self._cluster is not None
        operation = self.log.ask(victim)
        if victim == "database":
            self._cluster.stop()
            time.sleep(self._random.uniform(0, HELD_UP_SECONDS / 3))
            self._cluster.start()
        else:
            pids = self._cluster.processes() if victim == "database held up" else [self._victim.pid]
            with suspended(*pids):
                time.sleep(self._random.uniform(0, HELD_UP_SECONDS))
        self.log.answered(operation, 200)

    def kill_service(self, victim: str) -> None:
        operation = self.log.ask(f"kill {victim}", pid=self._victim.pid)
        if victim == "service":
            self._victim.kill()
        else:
            self._victim.kill_group()
        self.faults += [Fault(f"process {pid} outlived the service", (operation,)) for pid in self._victim.all_gone()]
        self.log.answered(operation, 200)
        self.faults += [*disk.check_versions(self._victim.store), *disk.check_checkpoints(self._victim.store)]

    def launch(self) -> None:
        self._victim.launch()
        self.restarts += 1

    def wait_ready(self) -> None:
        operation = self.log.ask("ready")
        self._victim.wait_for_worker(other_than=self._dead_worker)
        self.log.answered(operation, 200)


def run(
    folder: Path, kills: int, seed: int, database: str | None = None, *, cluster: Cluster | None = None
) -> Report:
    """Kill so many times, and check.

    Args:
        folder: empty; the store, the service's log and the operations' logs are left in it.
        database: the URL of an empty PostgreSQL for the jobs; the store's SQLite has them where it is absent.
        cluster: the server that has it, to be disturbed too.
    """
    begun = time.monotonic()
    logs = folder / "operations"
    logs.mkdir()
    victim = Victim(folder / "models", database)
    killer = Killer(victim, logs, seed, cluster)
    clients = [Client(victim.url, logs, number, seed) for number in range(CLIENTS)]
    report = Report(seed, killer.kills)
    killer.launch()
    try:
        killer.wait_ready()
        _work(killer, clients, kills)
        faults = _last_start(killer, victim, logs)
    finally:
        killer.log.close()
        if victim.process is not None and victim.process.poll() is None:
            victim.kill_group()
    report.restarts = killer.restarts
    report.operations = read_logs(logs)
    history = answers.History(report.operations)
    report.faults = [
        *killer.faults,
        *faults,
        *answers.check(history),
        *disk.check_store(victim.store, history, database),
        *disk.check_jobs(victim.store, history, database),
    ]
    for operation in report.operations:
        if operation.who.startswith("client"):
            report.done[operation.kind] += operation.done
            report.lost += operation.status is None and operation.sent
    report.resumed = sum(any(o.answer.get("resumed_from") for o in told) for told in history.jobs.values())
    report.seconds = time.monotonic() - begun
    return report


def _work(killer: Killer, clients: list[Client], kills: int) -> None:
    """Load and kills, and then load alone until the clients have ended what they must."""
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        working = [pool.submit(client.run, stop) for client in clients]
        try:
            printed = time.monotonic()
            while killer.kills.total() < kills:
                killer.kill()
                if time.monotonic() > printed + PRINT_SECONDS:
                    printed = time.monotonic()
                    done = sum((client.log.counts for client in clients), Counter())
                    print(f"{killer.kills.total()} kills, {done.total()} operations acknowledged", file=sys.stderr)
                for client in working:
                    if client.done():
                        client.result()  # it should go on until told to stop: raises what ended it
            killer.wait_ready()
        finally:
            stop.set()
        for client in working:
            client.result()


def _last_start(killer: Killer, victim: Victim, logs: Path) -> list[Fault]:
    """Kill once more, with the load gone; start, let the jobs end, read everything, and stop in order."""
    killer.kill_service("group")
    killer.launch()
    killer.wait_ready()
    faults = []
    reader = Caller(victim.url, logs, "reader")
    try:
        deadline = time.monotonic() + SETTLE_SECONDS
        while reader.jobs("queued").answer["jobs"] or reader.jobs("running").answer["jobs"]:
            if time.monotonic() > deadline:
                faults.append(Fault("jobs do not end"))
                break
            time.sleep(0.1)
        _read_all(reader, answers.History(read_logs(logs)))
    finally:
        reader.close()
    if (code := victim.stop()) != 0:
        faults.append(Fault(f"SIGTERM ended the service with exit code {code}"))
    faults += [Fault(f"process {pid} outlived the service") for pid in victim.all_gone()]
    if victim.listens():
        faults.append(Fault(f"port {victim.port} is listened on by nobody's service"))
    errors = [line for line in victim.log.read_text().splitlines() if " ERROR: " in line]
    if killer.kills.keys() & OF_POSTGRES.keys():  # which the log tells, as it should
        errors = [line for line in errors if "the jobs' database cannot be" not in line]
    faults += [Fault(f"in {victim.log}: {line}") for line in errors]
    return faults


def _read_all(reader: Caller, history: answers.History) -> None:
    """Ask for every version and every job that anybody was told of, whether it should be there or not."""
    reader.dictionaries()
    for name in {name for name, _ in history.versions} | set(SHARED):
        reader.record(name, None)
    for id in history.jobs:
        told = reader.job(id)
        if told.answer.get("state") == "succeeded":
            reader.encode(told.answer["name"], told.answer["version"])
    for name, version in history.versions:
        record = reader.record(name, version)
        reader.weights(name, version)
        reader.encode(name, version)
        if record.done:
            reader.decode(name, version, record.answer["nb_concepts"])
