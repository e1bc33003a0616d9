"""A real Slurm on this machine: munged, slurmctld and two slurmd, with files and ports of their own.

    python tests/engines/slurm.py [--hosts] [--cores 2] [--gpus 0] FOLDER

starts it in FOLDER, prints how to use it, and ends it on Ctrl-C. It needs Debian's packages slurm-wlm and munge, and
root. The two nodes have as many cores as you say, whatever the machine has. With `--hosts`, each has a host name of its
own, as on two machines; otherwise both look like this machine.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from sweep.utils.parent import end_with_parent

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
_PATIENCE_S = 30.0
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")  # any will do as GPUs: Slurm only counts them
_CONF = """
ClusterName=engine
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,requeue_delay=0
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=300
{gres}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


class Unavailable(Exception):
    """Slurm is not installed, or cannot be started here. The message says why."""


class SlurmCluster:
    """Starts Slurm as the context begins, and ends exactly what it started, jobs included, as the context ends.

    Attributes:
        env: the environment variables with which commands reach it.
        nodes: the names of its nodes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: Sequence[str] = ("node-a", "node-b"),
        n_cores: int = 2,
        n_gpus: int = 0,
        has_hosts: bool = False,
    ) -> None:
        """Prepare a cluster.

        Args:
            folder: where its files go. Other users must be able to enter it.
            nodes: the names of its nodes.
            n_cores: how many cores each node has.
            n_gpus: how many GPUs each node pretends to have, at most four.
            has_hosts: True gives each node a host name of its own.
        """
        self.nodes, self._folder = nodes, folder.absolute()
        self._n_cores, self._n_gpus, self._has_hosts = n_cores, n_gpus, has_hosts
        self.env = {"SLURM_CONF": str(self._folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # by the node, or the name of the program

    def __enter__(self) -> Self:
        missing = [program for program in _PROGRAMS if shutil.which(program) is None]
        if missing:
            raise Unavailable(f"there is no {', no '.join(missing)}: apt-get install slurm-wlm munge")
        if os.geteuid() != 0:
            raise Unavailable("Slurm's daemons are started as root here")
        try:
            self._configure()
            self._start_munge()
            self._start("slurmctld", "slurmctld", "-D", "-i")
            for node in self.nodes:
                self.start_node(node)
            self._await(lambda: self.idle() == {*self.nodes}, "its nodes")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands. Return what it prints."""
        done = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def jobs(self) -> dict[str, str]:
        """Return the states of all jobs by id, also of those that ended in the last five minutes."""
        lines = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T").split()
        return dict(line.split("|") for line in lines)

    def node_of(self, job: str) -> str:
        """Return the node on which a job runs; nothing if it does not run."""
        return self.run("squeue", "--noheader", "--array", f"--jobs={job}", "--format=%N")

    def idle(self) -> set[str]:
        """Return the nodes that wait for jobs."""
        return {*self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split()}

    def start_node(self, node: str) -> None:
        """Start a node, or start it again after `kill_node`."""
        command = ("slurmd", "-D", "-N", node)
        if self._has_hosts:
            command = ("unshare", "--uts", "sh", "-c", f"hostname {node} && exec slurmd -D -N {node}")
        self._start(node, *command)

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and all processes of its jobs, as if it had lost its power. Then tell Slurm."""
        daemon = self._processes.pop(node)
        _kill(daemon.pid)
        daemon.wait()
        for pid in _processes_with({"SLURM_CONF": self.env["SLURM_CONF"], "SLURMD_NODENAME": node}):
            _kill(pid)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def end(self) -> None:
        """Kill all daemons, and the processes of jobs that are left."""
        for process in reversed(self._processes.values()):
            _kill(process.pid)
            process.wait()
        self._processes.clear()
        for pid in _processes_with(self.env):
            _kill(pid)

    def _configure(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "state").mkdir(exist_ok=True)
        host = socket.gethostname().partition(".")[0]
        port, *ports = _free_ports(1 + len(self.nodes))
        gres = f"Gres=gpu:{self._n_gpus}" if self._n_gpus else ""
        nodes = [
            f"NodeName={node} NodeHostname={node if self._has_hosts else host} NodeAddr=127.0.0.1 Port={own} "
            f"CPUs={self._n_cores} RealMemory=100000 {gres} State=UNKNOWN"
            for node, own in zip(self.nodes, ports, strict=True)
        ]
        text = _CONF.format(
            host=host,
            port=port,
            folder=self._folder,
            nodes="\n".join(nodes),
            gres="GresTypes=gpu" if self._n_gpus else "",
        )
        (self._folder / "slurm.conf").write_text(text)
        gpus = [f"Name=gpu File={device}\n" for device in _DEVICES[: self._n_gpus]]
        (self._folder / "gres.conf").write_text("".join(gpus))

    def _start_munge(self) -> None:
        key = self._folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = [f"--{name}-file={self._folder}/munge.{name}" for name in ("pid", "log", "seed")]
        sock = self._folder / "munge.socket"
        self._start("munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sock}", *files)
        self._await(sock.exists, "munged")

    def _start(self, name: str, *command: str) -> None:
        with open(self._folder / f"{name}.out", "ab") as out:
            self._processes[name] = subprocess.Popen(
                command,
                env=os.environ | self.env | {"SLURMD_NODENAME": name},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def _await(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                if holds():
                    return
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                name = ended[0] if ended else what
                raise Unavailable(f"{name} does not start: {self._last_words(name)}")
            time.sleep(0.1)

    def _last_words(self, name: str) -> str:
        logs = [self._folder / f"{name}.out", *self._folder.glob(f"*{name}*.log")]
        lines = [line for log in logs if log.exists() for line in log.read_text(errors="replace").splitlines()]
        return lines[-1] if lines else "it says nothing"


def _processes_with(variables: Mapping[str, str]) -> list[int]:
    """Return the processes whose environment has these variables, but not this one."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(folder.name) != os.getpid() and wanted <= {*(folder / "environ").read_bytes().split(b"\0")}:
                found.append(int(folder.name))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [sock.getsockname()[1] for sock in sockets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0)
    given = parser.parse_args()
    try:
        with (
            SlurmCluster(given.folder, n_cores=given.cores, n_gpus=given.gpus, has_hosts=given.hosts) as cluster,
            contextlib.suppress(KeyboardInterrupt),
        ):
            print(f"export SLURM_CONF={cluster.env['SLURM_CONF']}   # then: sinfo; Ctrl-C here ends it", flush=True)
            signal.pause()
    except Unavailable as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
