"""Load a PostgreSQL server with 1 to 1,000 workers of one study, which claim and report but train nothing.

Each claims, samples, reports and ends its trials by the code of a real worker. A few processes play all of them in
turn, since real workers wait for their training most of the time; so one connection serves many workers here. As many
trials run as there are workers, on hosts of 8. Then the processes end and claim trials as fast as they can.
"""

import argparse
import copy
import multiprocessing
import os
import resource
import secrets
import socket
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sqlalchemy
from common import at_least, print_setting, print_verdict
from optuna.trial import FrozenTrial

from sweep.api import _hydra  # pyright: ignore[reportPrivateUsage]
from sweep.execution.plan import WorkerPlan
from sweep.execution.queues import open_queue
from sweep.execution.session import WorkerSession
from sweep.storage.quiet import quiet_optuna
from sweep.study.prepared import PreparedStudy
from sweep.study.spec import make_spec
from sweep.utils.errors import Pruned
from sweep.utils.signals import StopRequest

_SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432/test"
_PER_HOST = 8
_EPOCHS = 5  # that each trial has reported when the time begins
_N_TRIALS = 10**6
_PATIENCE_S = 300.0  # of the processes for each other, beyond which one has failed
_COLUMNS = (
    *("workers", "trials/s", "a claim, median and 95 % [ms]", "its CPU [ms]", "a report, median [ms]", "its CPU [ms]"),
    *("connections", "CPU of a trial, client [ms]", "server [ms]"),
)
_BOUNDS = {"claim_ms": 20.0, "claims_per_s": 100.0, "report_cpu_ms": 3.0}


@dataclass
class Measured:
    """What one process measured, in seconds."""

    claims: list[float] = field(default_factory=list)
    claim_cpu: list[float] = field(default_factory=list)
    report_cpu: list[float] = field(default_factory=list)
    reports: list[float] = field(default_factory=list)
    n_ended: int = 0
    cpu: float = 0.0
    wall: float = 0.0


class SimulatedWorker:
    """A worker with a real session, whose storage it shares with the others of its process."""

    def __init__(self, base: WorkerSession, name: str, host: str, held: ExitStack, measured: Measured) -> None:
        plan, self._measured, self._held = base.plan, measured, held
        self._session: Any = copy.copy(base)
        self._session._means, self._session._stops, self._session._late_at = {}, {}, {}
        held.enter_context(plan.folder.worker_lock(name))
        with patch.object(socket, "gethostname", lambda: host):
            url, retries = plan.settings.storage, plan.settings.max_retries
            self._session.queue = open_queue(base.storage, url, plan.name, plan.folder, name, retries)
        self._claimed: list[FrozenTrial] = []
        held.enter_context(self._session.queue.heartbeats(self._claimed))

    def begin(self) -> None:
        """Claim a trial, and sample its params."""
        start, cpu = time.perf_counter(), time.thread_time()
        trial = self._session.claim()
        self._measured.claim_cpu.append(time.thread_time() - cpu)
        self._measured.claims.append(time.perf_counter() - start)
        self._claimed[:] = [trial]
        self._session.configure(trial)
        self._report = self._session.reporter(trial, self._session.open(trial), 0, 10**6)
        self._epoch = 0

    def train(self, n: int) -> None:
        """Report `n` epochs, unless the trial is pruned before."""
        for _ in range(n):
            self._epoch += 1
            start, cpu = time.perf_counter(), time.thread_time()
            try:
                self._report(self._epoch, {"val/loss": 1 / (self._epoch + self._claimed[0].number % 7)})
            except Pruned:
                return
            finally:
                self._measured.report_cpu.append(time.thread_time() - cpu)
                self._measured.reports.append(time.perf_counter() - start)

    def end(self) -> None:
        """Store how the trial ended."""
        self._session.settle(self._claimed[0], lambda: [0.5])
        self._measured.n_ended += 1


def play(plan: WorkerPlan, numbers: range, seconds: float, together: Any, results: Any) -> None:
    """Play some of the workers, in a process of its own."""
    warmup, measured = Measured(), Measured()
    with quiet_optuna(), ExitStack() as held:
        base = WorkerSession(plan, f"{plan.launch}-{numbers[0]}", StopRequest())
        workers = [SimulatedWorker(base, f"{plan.launch}-{n}", f"host{n // _PER_HOST}", held, warmup) for n in numbers]
        for worker in workers:
            worker.begin()
            worker.train(_EPOCHS)
        together.wait()
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        while time.perf_counter() < start + seconds:
            for worker in workers:
                worker._measured = measured
                worker.end()
                worker.begin()
                worker.train(_EPOCHS)
                if time.perf_counter() >= start + seconds:
                    break
        after, measured.wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
        measured.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        results.put(measured)
        together.wait()  # the connections are counted before they are closed
        os._exit(0)


def measure(
    n_workers: int, n_processes: int, seconds: float, url: str, pruner: str
) -> tuple[list[Measured], float, int]:
    """Return what each process measured, the CPU seconds of the server, and its connections."""
    with tempfile.TemporaryDirectory() as folder, quiet_optuna():
        plan = planned(Path(folder), url, f"load-{n_workers}-{pruner}", pruner)
        processes = min(n_workers, n_processes)
        together, results = multiprocessing.Barrier(processes + 1, timeout=_PATIENCE_S), multiprocessing.Queue()
        shares = [range(i * n_workers // processes, (i + 1) * n_workers // processes) for i in range(processes)]
        started = [
            multiprocessing.Process(target=play, args=(plan, numbers, seconds, together, results)) for numbers in shares
        ]
        for process in started:
            process.start()
        together.wait()
        before = server_cpu(url)
        measured = [results.get(timeout=_PATIENCE_S) for _ in started]
        after = server_cpu(url)
        together.wait()
        for process in started:
            process.join()
        return measured, sum(after[pid] - before.get(pid, 0.0) for pid in after), len(after)


def planned(folder: Path, url: str, name: str, pruner: str) -> WorkerPlan:
    """Begin a study, and return the plan of its workers."""
    given = ["experiment=debug", "tracking=off", f"output_dir={folder}", "trainer.epochs=60"]
    settings = {"n_trials": _N_TRIALS, "storage": url, "study_name": name, "sampler": "random", "pruner": pruner}
    with _hydra("config", given, None, None, {**settings, "max_failure_rate": 1.0}) as (root, arguments):
        study, plan = PreparedStudy(make_spec(root, arguments)).open()
    study._storage.engine.dispose()  # type: ignore[attr-defined]
    return plan


def server_cpu(url: str) -> dict[int, float]:
    """Return the CPU seconds that the server has used for each connection, by the id of its process."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        pids = [int(row[0]) for row in connection.exec_driver_sql(sql)]
    return {pid: _cpu_of(pid) for pid in pids}


def _cpu_of(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def show(n_workers: int, measured: list[Measured], server: float, n_connections: int) -> dict[str, float]:
    """Print one line of the table."""
    claims = sorted(claim * 1e3 for one in measured for claim in one.claims)
    reports = sorted(report * 1e3 for one in measured for report in one.reports)
    claim_cpu = statistics.mean(claim * 1e3 for one in measured for claim in one.claim_cpu)
    cpu = statistics.mean(report * 1e3 for one in measured for report in one.report_cpu)
    wall, n_ended = max(one.wall for one in measured), sum(one.n_ended for one in measured)
    found = {"claims_per_s": n_ended / wall, "claim_ms": statistics.median(claims), "report_cpu_ms": cpu}
    row: list[object] = [n_workers, f"{n_ended / wall:.1f}"]
    row += [f"{statistics.median(claims):.1f}, {claims[int(len(claims) * 0.95)]:.1f}", f"{claim_cpu:.1f}"]
    row += [f"{statistics.median(reports):.1f}", f"{cpu:.2f}", n_connections]
    row += [f"{total / n_ended * 1e3:.1f}" for total in (sum(one.cpu for one in measured), server)]
    print(f"| {' | '.join(map(str, row))} |", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,16,64,256,1000")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pruner", default="asha")
    parser.add_argument("--server", default=_SERVER, help="a database of a server, in which another is made")
    arguments = parser.parse_args()
    print_setting()
    server = sqlalchemy.create_engine(arguments.server, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    name = f"sweep_load_{secrets.token_hex(4)}"
    url = server.url.set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    print(f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|")
    found: dict[str, float] = {}
    try:
        for n_workers in map(int, arguments.workers.split(",")):
            found = show(n_workers, *measure(n_workers, arguments.processes, arguments.seconds, url, arguments.pruner))
    finally:
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    holds = [
        print_verdict("a claim", found["claim_ms"], _BOUNDS["claim_ms"], " ms"),
        at_least("claims", found["claims_per_s"], _BOUNDS["claims_per_s"], "/s"),
        print_verdict("CPU of a report", found["report_cpu_ms"], _BOUNDS["report_cpu_ms"], " ms"),
    ]
    sys.exit(not all(holds))


if __name__ == "__main__":
    main()
