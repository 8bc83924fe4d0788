"""The site file against the live cluster: what is well and what is wrong, one line each."""

import getpass
import importlib.metadata
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from holdfast.cluster.commands import NO_ACCOUNTING, find_commands, slurm
from holdfast.cluster.live import Finding, Live, look
from holdfast.cluster.site import Partition, Site, minutes, read_site
from holdfast.cluster.software import module_command
from holdfast.cluster.trial import trial
from holdfast.errors import HoldfastError

PLUGIN = "snakemake-executor-plugin-slurm"
# The plugin looks at finished jobs at least every three minutes; Slurm must not have forgotten them by then.
FORGETS = 240
# States in which a node takes no jobs (scontrol show node; several are joined by +, flags stand at the end).
UNUSABLE = {"DOWN", "DRAIN", "FAIL", "FAILING", "FUTURE", "MAINT", "NOT_RESPONDING", "UNKNOWN", "INVAL"}
SHARED = re.compile(
    r"nfs|lustre|gpfs|beegfs|ceph|glusterfs|panfs|pvfs|orangefs|afs|wekafs|quobyte|smb|cifs|9p"
)
NO_LOCKS = {"localflock", "nolock", "local_lock=all", "local_lock=flock"}


def diagnose(site_path: Path, results: Path, try_job: bool) -> Iterator[Finding]:
    """Every finding, in the order in which one would mend them, as far as anything can be said."""
    try:
        site = read_site(site_path)
    except HoldfastError as error:
        for mistake in getattr(error, "mistakes", [str(error)]):
            where, _, what = mistake.partition(": ")
            yield Finding(where, *what.rsplit("; ", 1))
        return
    yield Finding(str(site_path), "read")
    yield plugin()
    try:
        find_commands()
        live = look()
    except HoldfastError as error:
        yield Finding(error.where, error.what, error.remedy)
        return
    yield Finding("controller", f"answers, {len(live.nodes)} nodes")
    yield accounting(live)
    for name in site.partitions or [live.default()]:
        limits = site.partitions[name] if name in site.partitions else Partition()
        yield from partition(name, limits, site, live)
    yield from site_wide(site, live)
    yield from account(site)
    yield from modules(site)
    yield from container(site)
    yield from storage(results, live)
    if try_job:
        yield from trial(site, results, live)


def plugin() -> Finding:
    try:
        return Finding(PLUGIN, importlib.metadata.version(PLUGIN))
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            PLUGIN, "not installed", "install envs/core.txt into the environment that runs Snakemake"
        )


def accounting(live: Live) -> Finding:
    """Whether Slurm remembers finished jobs for long enough to see how they ended."""
    if live.config.get("AccountingStorageType") != NO_ACCOUNTING:
        return Finding("accounting", "there is a database")
    age = re.match(r"\d+", live.config.get("MinJobAge", ""))
    if age and int(age[0]) < FORGETS:
        return Finding(
            "accounting",
            f"no database, and finished jobs are forgotten after {age[0]} s, maybe before they are seen",
            f"ask the administrators for slurmdbd, or for MinJobAge={FORGETS} or more",
        )
    return Finding("accounting", "no database; finished jobs are read from squeue")


def partition(name: str | None, limits: Partition, site: Site, live: Live) -> Iterator[Finding]:
    """Does a partition of the site file exist, can it be used, and has it what the file says?"""
    if name is None:
        yield Finding(
            "partitions", "none given, and the cluster has no default one", "name some in the site file"
        )
        return
    where = f"partition {name}"
    if name not in live.partitions:
        yield Finding(
            where, "the cluster has none of that name", f"choose from: {', '.join(live.partitions)}"
        )
        return
    has = live.partitions[name]
    nodes = live.nodes_of(name)
    usable = [n for n in nodes if not unusable(n)]
    if has.get("State") != "UP":
        yield Finding(where, f"is {has.get('State', '?').lower()}", "wait until it is up, or name another")
        return
    if not usable:
        yield Finding(
            where, f"none of its {len(nodes)} nodes can be used", "wait, or name another (see sinfo)"
        )
        return
    for key, value in (("AllowAccounts", site.account), ("AllowQos", site.qos)):
        allowed = has.get(key, "ALL").split(",")
        if value and "ALL" not in allowed and value not in allowed:
            yield Finding(where, f"does not take {value}", f"choose from: {', '.join(allowed)}")
    found = list(limit_findings(where, limits, has, usable))
    yield from found or [
        Finding(where, f"up, {len(usable)} of {len(nodes)} nodes usable, {gpus_told(usable)}")
    ]


def limit_findings(
    where: str, limits: Partition, has: dict[str, str], nodes: list[dict[str, str]]
) -> Iterator[Finding]:
    """Limits of the site file that are above the partition's own: jobs between the two would wait for ever."""
    longest = has.get("MaxTime", "UNLIMITED")
    if limits.max_runtime and longest != "UNLIMITED" and minutes(limits.max_runtime) > minutes(longest):
        yield Finding(
            f"{where}, max_runtime", f"{limits.max_runtime} is above its limit {longest}", "lower it"
        )
    most = {
        "max_mem_mb": max(int(n.get("RealMemory", 0)) for n in nodes),
        "max_threads": max(int(n.get("CPUTot", 0)) for n in nodes),
        "max_gpu": max(sum(gpus(n).values()) for n in nodes),
    }
    for key, value in most.items():
        if (given := getattr(limits, key)) and given > value:
            yield Finding(
                f"{where}, {key}", f"{given} is more than any of its nodes has ({value})", "lower it"
            )
    kinds = {kind for n in nodes for kind in gpus(n)}
    for kind in limits.available_gpu_models or []:
        if kind not in kinds:
            yield Finding(f"{where}, available_gpu_models", f"no {kind} there", told(kinds))


def site_wide(site: Site, live: Live) -> Iterator[Finding]:
    """GPU type and constraint: does any node that the site's jobs may go to have them?"""
    names = [name for name in site.partitions or [live.default()] if name]
    nodes = [n for name in names for n in live.nodes_of(name)]
    kinds = {kind for n in nodes for kind in gpus(n)}
    if site.gpu_type:
        if site.gpu_type in kinds:
            yield Finding("gpu_type", f"{site.gpu_type} is there")
        else:
            yield Finding("gpu_type", f"no node of {', '.join(names)} has {site.gpu_type}", told(kinds))
    if site.gpu_memory_gb and not any(map(gpus, live.nodes)):
        yield Finding(
            "gpu_memory_gb", "the cluster has no GPUs, and larger models' jobs ask for them", "set it to 0"
        )
    elsewhere = sorted(name for name in live.partitions if any(map(gpus, live.nodes_of(name))))
    if elsewhere and not (any(p.max_gpu for p in site.partitions.values()) if site.partitions else kinds):
        remedy = f"give max_gpu to those with GPUs ({', '.join(elsewhere)}), or GPU jobs go astray"
        yield Finding("partitions", "none of the site file's takes GPU jobs", remedy)
    if site.constraint:
        features = {f for n in nodes for f in n.get("AvailableFeatures", "").split(",")}
        asked = set(re.findall(r"[\w.-]+", re.sub(r"\*\d+", "", site.constraint)))
        if missing := sorted(asked - features):
            known = ", ".join(sorted(features - {"(null)", ""})) or "none"
            yield Finding("constraint", f"no node has {', '.join(missing)}", f"choose from: {known}")
        else:
            yield Finding("constraint", f"{site.constraint} is there")


def account(site: Site) -> Iterator[Finding]:
    """The account and the quality of service, where there is a database that knows them."""
    try:
        user = f"user={getpass.getuser()}"
        table = slurm("sacctmgr", "-nP", "show", "associations", user, "format=account,qos")
    except HoldfastError:
        if site.account or site.qos:
            yield Finding("account", "cannot be checked: no accounting database answers")
        return
    rows = [line.split("|") for line in table.splitlines() if "|" in line]
    for name, value, known in (
        ("account", site.account, {row[0] for row in rows}),
        ("qos", site.qos, {q for row in rows for q in row[1].split(",")}),
    ):
        if value and value not in known:
            yield Finding(
                name, f"{value} is not allowed for {user[5:]}", f"choose from: {', '.join(sorted(known))}"
            )
        elif value:
            yield Finding(name, value)


def modules(site: Site) -> Iterator[Finding]:
    """Whether the modules can be loaded, as far as this machine's are those of the nodes."""
    try:
        prepare = module_command() if site.modules else ""
    except HoldfastError as error:
        yield Finding(error.where, error.what, error.remedy)
        return
    for name in site.modules:
        asked = f"{prepare} && module is-avail {shlex.quote(name)}"
        there = subprocess.run(["sh", "-c", asked], capture_output=True, check=False).returncode == 0
        yield (
            Finding(f"module {name}", "is there")
            if there
            else Finding(f"module {name}", "there is none of that name", "choose from: module avail")
        )


def container(site: Site) -> Iterator[Finding]:
    """Whether the image is there; whether nodes can run it only a job can tell."""
    if site.container and Path(site.container).exists():
        yield Finding("container", f"{site.container} is there")
    elif site.container:
        yield Finding(
            "container", f"{site.container} is not there", "build or copy it to where all nodes see it"
        )


def storage(results: Path, live: Live) -> Iterator[Finding]:
    """Whether jobs on other nodes see the results folder, and whether its locks hold, as far as its mount tells."""
    folder = results.resolve()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Finding(str(results), "cannot be written", "run in a folder of your own")
        return
    kind, options = mount_of(folder)
    here = os.uname().nodename.partition(".")[0]
    others = [
        n["NodeHostName"] for n in live.nodes if n.get("NodeHostName") not in (here, os.uname().nodename)
    ]
    if bad := NO_LOCKS & set(options):
        yield Finding(
            str(results),
            f"{kind}, mounted with {', '.join(sorted(bad))}",
            "run always from one and the same login node",
        )
    if others and not SHARED.match(kind):
        yield Finding(
            str(results),
            f"{kind}, which looks local to {here}; jobs run on {', '.join(others[:3])}",
            "run in a folder that all nodes see; --try-job makes sure",
        )
    elif not bad:
        yield Finding(str(results), f"{kind}, {'shared' if others else 'and jobs run on this machine only'}")


def mount_of(folder: Path) -> tuple[str, list[str]]:
    """Type of file system and mount options of a folder."""
    best: tuple[int, str, list[str]] = (0, "unknown", [])
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, point, kind, options, *_ = line.split()
        where = Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), point))
        if folder.is_relative_to(where) and len(where.parts) >= best[0]:
            best = (len(where.parts), kind, options.split(","))
    return best[1:]


def unusable(node: dict[str, str]) -> bool:
    return bool(UNUSABLE & set(re.split(r"[+*]", node.get("State", "UNKNOWN")))) or "*" in node.get(
        "State", ""
    )


def gpus(node: dict[str, str]) -> dict[str, int]:
    """A node's GPUs by type, from its GRES: ``gpu:a100:4(S:0-1),gpu:2``; untyped ones as ''."""
    found: dict[str, int] = {}
    for kind, number in re.findall(r"(?:^|,)gpu(?::([^:,()]+(?=:)))?:(\d+)", node.get("Gres", "")):
        found[kind] = found.get(kind, 0) + int(number)
    return found


def gpus_told(nodes: list[dict[str, str]]) -> str:
    kinds = {f"{number} {kind} GPU".replace("  ", " ") for n in nodes for kind, number in gpus(n).items()}
    return f"up to {' or '.join(sorted(kinds))} each" if kinds else "no GPUs"


def told(kinds: set[str]) -> str:
    names = ", ".join(sorted(kinds - {""}))
    return f"choose from: {names}" if names else "set it to null: no GPU has a type there"
