"""A real Slurm on this machine, for tests and the demo: Debian's packages, 127.0.0.1 only, no system file touched.

``python tests/slurm/cluster.py COMMAND …`` runs a command with a cluster around it and stops the cluster after it.
Everything lies in one temporary folder; its ``bin/`` has the Slurm commands bound to this cluster and goes first on
PATH. There is no accounting database, as in many a small lab, and memory limits are enforced by sampling.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
CLIENTS = ["sacct", "sacctmgr", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun", "sshare"]
DAEMONS = ["munged", "slurmctld", "slurmd"]
WHERE = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # daemons are not on every user's PATH
MARK = "HOLDFAST_TEST_CLUSTER"
NODES = {"n1": 0, "n2": 2, "n3": 1}  # a node and its GPUs, of type "fake"
DEVICES = ("/dev/null", "/dev/zero")
MEMORY = 40000  # of a node, said to be there; megabytes

CONF = """\
ClusterName=holdfast
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2
SlurmctldTimeout=10
SlurmdTimeout=10
ReturnToService=2
KillWait=2
MinJobAge=7200
MessageTimeout=10
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=cpu Nodes=ALL Default=YES DefaultTime=60 MaxTime=1-00:00:00
PartitionName=gpu Nodes={gpus} DefaultTime=60 MaxTime=1-00:00:00
"""


class CannotStartError(Exception):
    """Why there can be no cluster here."""


def program(name: str) -> str | None:
    return shutil.which(name, path=WHERE)


def install() -> None:
    """Slurm from Debian's packages, where it is missing; nothing of it is started.

    Raises CannotStartError where packages cannot be installed.
    """
    if not all(map(program, [*DAEMONS, "sbatch", "srun"])):
        install_packages(PACKAGES)


def install_packages(packages: list[str]) -> None:
    """Debian's, without starting any service of theirs. Raises CannotStartError where that cannot be."""
    if os.geteuid() != 0 or not program("apt-get"):
        missing = f"{packages[0]} is not installed"
        raise CannotStartError(f"{missing}, and only root can install it, with apt-get")
    policy = Path("/usr/sbin/policy-rc.d")  # forbids the packages' services to start
    written = not policy.exists()
    if written:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", "-qq", *command],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            if done.returncode:
                raise CannotStartError(f"apt-get {command[0]}: {done.stderr.strip()[-300:]}")
    except subprocess.TimeoutExpired:
        raise CannotStartError("apt-get took more than five minutes") from None
    finally:
        if written:
            policy.unlink()


def wait_for(true: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


class Cluster:
    """One controller and a few nodes. ``environment`` is what commands need to use it."""

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus  # of a node, said to be there
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-slurm-"))
        self.folder.chmod(0o755)  # munge wants its socket reachable for all
        self.environment = {
            **os.environ,
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            MARK: str(self.folder),  # jobs inherit it: what belongs to this cluster is known by it
        }
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Raises CannotStartError or TimeoutError; :meth:`stop` is due in either case."""
        install()
        for name in ("bin", "log", "state", *(f"spool-{n}" for n in NODES)):
            (self.folder / name).mkdir()
        self._configure()
        for name in CLIENTS:
            if found := program(name):
                self.replace(name, f'SLURM_CONF={self.folder}/slurm.conf exec {found} "$@"')
        self._munge()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: self.nodes_in("idle") == len(NODES), f"the nodes; see {self.folder}/log")

    def replace(self, name: str, script: str) -> None:
        """A command in front of all others."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def _configure(self) -> None:
        ports = free_ports(1 + len(NODES))
        host, nodes, devices = socket.gethostname().partition(".")[0], [], []
        for (name, gpus), port in zip(NODES.items(), ports[1:], strict=True):
            gres = f" Gres=gpu:fake:{gpus}" if gpus else ""
            nodes.append(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus}"
                f" RealMemory={MEMORY}{gres}"
            )
            # slurmd asks for device files that exist, and never opens them
            devices += [f"NodeName={name} Name=gpu Type=fake File={file}\n" for file in DEVICES[:gpus]]
        text = CONF.format(
            host=host,
            port=ports[0],
            user=getpass.getuser(),
            folder=self.folder,
            nodes="\n".join(nodes),
            gpus=",".join(name for name, gpus in NODES.items() if gpus),
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("".join(devices))

    def _launch(self, name: str, *command: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],  # no daemon outlives a killed test
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,  # where a daemon that crashes leaves its core
                env={**os.environ, "PATH": WHERE, "SLURM_CONF": f"{self.folder}/slurm.conf"},
            )

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = {"key-file": key, "socket": "munge.sock", "pid-file": "munge.pid"}
        files |= {"log-file": "log/munge.log", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / str(file)}" for option, file in files.items()]
        self._launch("munged", "munged", "--foreground", *options)
        wait_for((self.folder / "munge.sock").exists, "munged")

    def start_controller(self) -> None:
        self._launch("slurmctld", "slurmctld", "-D")

    def stop_controller(self) -> None:
        """As a maintenance does: its state is saved; jobs go on."""
        self._end("slurmctld")

    def start_node(self, node: str) -> None:
        self._launch(node, "slurmd", "-D", "-N", node)

    def fail_node(self, node: str) -> None:
        """A power cut: its daemon and all that runs on it, at once. The controller finds out by itself."""
        self.daemons.pop(node).kill()
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, node: str | None = None) -> list[int]:
        """What runs in jobs of this cluster (on one node), the step managers above it too."""
        wanted = {f"{MARK}={self.folder}".encode()}
        if node:
            wanted.add(f"SLURMD_NODENAME={node}".encode())
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = set((process / "environ").read_bytes().split(b"\0"))
                of_cluster = f"SLURM_CONF={self.folder}/slurm.conf".encode() in environment
                if node is None and of_cluster and (process / "comm").read_text().strip() == "slurmstepd":
                    found.add(int(process.name))  # whose job's processes have ended before it
                    continue
                if not wanted <= environment or b"SLURM_JOB_ID" not in {
                    e.partition(b"=")[0] for e in environment
                }:
                    continue
                found.add(int(process.name))
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if Path("/proc", parent, "comm").read_text().strip() == "slurmstepd":
                    found.add(int(parent))
        return sorted(found)

    def run(self, *command: str, timeout: float = 30) -> str:
        """What a Slurm command prints. Raises CalledProcessError."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=timeout
        ).stdout

    def nodes_in(self, state: str) -> int:
        with contextlib.suppress(subprocess.CalledProcessError):
            return (
                self.run("sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%T")
                .split()
                .count(state)
            )
        return 0

    def _end(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def stop(self) -> None:
        """Ends everything that was started here, by process id, and removes the folder."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons.values():
            daemon.kill()
        for name in list(self.daemons):
            self._end(name)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def running(cpus: int = 4) -> Iterator[Cluster]:
    """A cluster, stopped in the end, also on interruption."""
    cluster = Cluster(cpus)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def stop_on_signals() -> None:
    """A plea to end is an interruption, so that the cluster is stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))


def main(command: list[str]) -> int:
    if not command:
        print("cluster.py: no command; give one to run with a cluster around it", file=sys.stderr)
        return 2
    stop_on_signals()
    try:
        with running() as cluster:
            return subprocess.run(command, env=cluster.environment, check=False).returncode
    except CannotStartError as reason:
        print(f"cluster.py: {reason}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
