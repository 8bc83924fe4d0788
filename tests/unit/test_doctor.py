"""The doctor on recorded answers of Slurm; on a live cluster: tests/slurm."""

import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
from holdfast.cluster import doctor, trial
from holdfast.cluster.commands import records, settings
from holdfast.cluster.live import Live
from holdfast.cluster.site import Partition, Site, minutes, read_site
from holdfast.cluster.software import load
from holdfast.config.reading import ConfigError
from holdfast.files import read_json
from holdfast.provenance import Recorder
from pydantic import ValidationError

# As Slurm 22.05 prints them (`scontrol show … --oneliner`), shortened to fewer keys.
PARTITIONS = """\
PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES MaxTime=2-00:00:00 MinNodes=0 State=UP
PartitionName=gpu AllowGroups=ALL AllowAccounts=lab,proj AllowQos=ALL Default=NO MaxTime=1-00:00:00 State=UP
PartitionName=old AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=NO MaxTime=UNLIMITED State=DOWN
"""
NODES = """\
NodeName=n1 Arch=x86_64 CPUTot=64 AvailableFeatures=haswell,ib Gres=(null) NodeHostName=n1 \
OS=Linux 6.1.0-13-amd64 #1 SMP  RealMemory=250000 State=MIXED Partitions=cpu  CfgTRES=cpu=2,mem=40000M,billing=2
NodeName=g1 Arch=x86_64 CPUTot=96 AvailableFeatures=ib Gres=gpu:a100:4(S:0-1),shard:8 NodeHostName=g1 \
RealMemory=500000 State=IDLE+DRAIN Partitions=gpu  Reason=a bad=disk [root@2026-11-22T02:36:05]
NodeName=g2 Arch=x86_64 CPUTot=96 AvailableFeatures=(null) Gres=gpu:a100:2,gpu:v100:2 NodeHostName=g2 \
RealMemory=400000 State=ALLOCATED Partitions=gpu,old
"""
CONFIG = """\
Configuration data as of 2026-11-22T02:36:04
AccountingStorageType   = accounting_storage/none
MinJobAge               = 300 sec
"""


@pytest.fixture
def live() -> Live:
    partitions = {p["PartitionName"]: p for p in records(PARTITIONS)}
    return Live(partitions, records(NODES), settings(CONFIG))


def lines(findings: Any) -> list[str]:
    return [str(f) for f in findings]


def test_records_may_hold_blanks_and_equal_signs() -> None:
    first, second, _ = records(NODES)
    assert first["OS"] == "Linux 6.1.0-13-amd64 #1 SMP"
    assert (first["RealMemory"], first["CfgTRES"]) == ("250000", "cpu=2,mem=40000M,billing=2")
    assert second["State"] == "IDLE+DRAIN"


@pytest.mark.parametrize(
    ("gres", "found"),
    [
        ("(null)", {}),
        ("gpu:2", {"": 2}),
        ("gpu:a100:4(S:0-1),shard:8", {"a100": 4}),
        ("gpu:a100:2,gpu:v100:2", {"a100": 2, "v100": 2}),
        ("gpu:1(S:0)", {"": 1}),
    ],
)
def test_gpus_of_a_node(gres: str, found: dict[str, int]) -> None:
    assert doctor.gpus({"Gres": gres}) == found


@pytest.mark.parametrize("state", ["DOWN", "DOWN*", "IDLE+DRAIN", "IDLE*", "MIXED+MAINT", "FUTURE"])
def test_nodes_that_take_no_job(state: str) -> None:
    assert doctor.unusable({"State": state})


@pytest.mark.parametrize(
    "state", ["IDLE", "MIXED", "ALLOCATED", "IDLE+CLOUD", "IDLE+POWERED_DOWN", "IDLE+PLANNED"]
)
def test_nodes_that_take_jobs(state: str) -> None:
    assert not doctor.unusable({"State": state})


def test_a_partition_as_it_should_be(live: Live) -> None:
    limits = Partition(max_runtime="1d", max_gpu=4, max_mem_mb=400000, available_gpu_models=["v100"])
    assert lines(doctor.partition("gpu", limits, Site(account="lab"), live)) == [
        "well: partition gpu: up, 1 of 2 nodes usable, up to 2 a100 GPU or 2 v100 GPU each"
    ]
    assert lines(doctor.site_wide(Site(partitions={"gpu": limits}, gpu_type="a100"), live)) == [
        "well: gpu_type: a100 is there"
    ]


@pytest.mark.parametrize(
    ("name", "limits", "told"),
    [
        ("gpus", {}, "partition gpus: the cluster has none of that name; choose from: cpu, gpu, old"),
        ("old", {}, "partition old: is down; wait until it is up, or name another"),
        ("gpu", {"max_runtime": "2d"}, "max_runtime: 2d is above its limit 1-00:00:00; lower it"),
        (
            "gpu",
            {"max_mem_mb": 500000},
            "max_mem_mb: 500000 is more than any of its nodes has (400000); lower it",
        ),
        ("gpu", {"max_gpu": 8}, "max_gpu: 8 is more than any of its nodes has (4); lower it"),
        ("cpu", {"max_gpu": 1}, "max_gpu: 1 is more than any of its nodes has (0); lower it"),
        ("gpu", {"available_gpu_models": ["h100"]}, "no h100 there; choose from: a100, v100"),
    ],
)
def test_what_is_wrong_with_a_partition(live: Live, name: str, limits: dict[str, Any], told: str) -> None:
    found = lines(doctor.partition(name, Partition(**limits), Site(), live))
    assert len(found) == 1
    assert found[0].startswith("wrong: ")
    assert found[0].endswith(told)


@pytest.mark.parametrize(
    ("site", "told"),
    [
        (
            {"gpu_type": "h100", "partitions": {"gpu": {"max_gpu": 4}}},
            "no node of gpu has h100; choose from: a100, v100",
        ),
        ({"gpu_type": "h100", "partitions": {"cpu": {}}}, "set it to null: no GPU has a type there"),
        ({}, "none of the site file's takes GPU jobs; give max_gpu to those with GPUs (gpu, old)"),
        ({"partitions": {"gpu": {}}}, "none of the site file's takes GPU jobs"),
        ({"constraint": "ib&epyc", "partitions": {"cpu": {}}}, "no node has epyc; choose from: haswell, ib"),
    ],
)
def test_what_is_wrong_with_the_site(live: Live, site: dict[str, Any], told: str) -> None:
    assert any(told in line for line in lines(doctor.site_wide(Site.model_validate(site), live)))


def test_a_cluster_without_gpus(live: Live) -> None:
    bare = live._replace(nodes=[{**n, "Gres": "(null)"} for n in live.nodes])
    wrong = "wrong: gpu_memory_gb: the cluster has no GPUs, and larger models' jobs ask for them; set it to 0"
    assert lines(doctor.site_wide(Site(), bare)) == [wrong]
    assert lines(doctor.site_wide(Site(gpu_memory_gb=0), bare)) == []


def test_an_account_that_a_partition_does_not_take(live: Live) -> None:
    found = lines(doctor.partition("gpu", Partition(max_gpu=1), Site(account="other"), live))
    assert found == ["wrong: partition gpu: does not take other; choose from: lab, proj", *found[1:]]


def test_finished_jobs_must_be_remembered(live: Live) -> None:
    assert not doctor.accounting(live).remedy
    short = live._replace(config={**live.config, "MinJobAge": "60 sec"})
    assert "forgotten after 60 s" in doctor.accounting(short).what
    database = live._replace(config={**short.config, "AccountingStorageType": "accounting_storage/slurmdbd"})
    assert not doctor.accounting(database).remedy


def test_no_job_is_tried_where_none_can_be(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(trial, "slurm", lambda *command, timeout: tried.append(command[1]))
    (tmp_path / "file").write_text("")
    (told,) = lines(trial.trial(Site(), tmp_path / "file/results", live))
    assert told.startswith("wrong: ")
    assert told.endswith("file/results: cannot be made (Not a directory); run in a folder of your own")
    no_default = live._replace(partitions={k: {**p, "Default": "NO"} for k, p in live.partitions.items()})
    assert lines(trial.trial(Site(), tmp_path, no_default)) == []
    assert lines(trial.trial(Site(partitions={"none": {}}), tmp_path, live)) == []
    assert tried == []
    (told,) = lines(trial.trial(Site(), tmp_path, live))
    assert (tried, told.partition(";")[0]) == (
        ["--partition=cpu"],
        f"wrong: a job in cpu: what it wrote into {tmp_path} is not seen here",
    )


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (
            "1",
            "well: a job in gpu: starts, imports holdfast, torch sees its GPU, and its files are seen here",
        ),
        (
            "0",
            "wrong: a job in gpu: was given a GPU, and torch sees none there: models would run on the CPU; ",
        ),
    ],
)
def test_a_job_in_a_partition_of_gpus_asks_for_one(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str, told: str
) -> None:
    commands: list[tuple[str, ...]] = []

    def of_cluster(*command: str, timeout: float) -> None:
        commands.append(command)
        next_mark.write_text(seen)

    next_mark = tmp_path / f".doctor-{os.getpid()}"
    monkeypatch.setattr(trial, "slurm", of_cluster)
    site = Site(gpu_type="a100", partitions={"gpu": Partition(max_gpu=4)})
    assert lines(trial.trial(site, tmp_path, live))[0].startswith(told)
    lines(trial.trial(site.model_copy(update={"gpu_memory_gb": 0}), tmp_path, live))
    assert [[o for o in c if o.startswith("--gpus")] for c in commands] == [["--gpus=a100:1"], []]
    assert not next_mark.exists()


def test_a_type_of_gpu_that_the_plugin_refuses_is_refused_first(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(
        "gpu_type: a100-40\npartitions: {gpu: {available_gpu_models: [gfx90a, nvidia_h100.1g-2]}}\n"
    )
    with pytest.raises(ConfigError) as error:
        read_site(path)
    for name, line in zip(("a100-40", "nvidia_h100.1g-2"), error.value.mistakes, strict=True):
        assert f"'{name}': the Slurm plugin takes letters, digits, _ and . only; say null" in line


def test_a_local_file_system_under_the_results(
    live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for mount, told in (
        (("ext4", ["rw"]), "looks local"),
        (("nfs4", ["rw", "local_lock=all"]), "mounted with local_lock=all"),
        (("lustre", ["rw", "flock"]), "shared"),
    ):
        monkeypatch.setattr(doctor, "mount_of", lambda _folder, mount=mount: mount)
        found = lines(doctor.storage(tmp_path / "results", live))
        assert len(found) == 1
        assert told in found[0]
        assert found[0].startswith("wrong" if told != "shared" else "well")


def test_the_mount_of_a_folder() -> None:
    kind, options = doctor.mount_of(Path("/proc/self"))
    assert kind == "proc"
    assert options


@pytest.mark.parametrize(("time", "expected"), [(90, 90), ("12h", 720), ("2d", 2880), ("1-00:00:00", 1440)])
def test_times(time: int | str, expected: int) -> None:
    assert minutes(time) == expected


@pytest.mark.parametrize("time", ["soon", "", "0", "-1h", "1:2:3:4", "UNLIMITED"])
def test_what_is_no_time(time: str) -> None:
    with pytest.raises(ValidationError, match="is no time"):
        Partition(max_runtime=time)


def test_every_mistake_of_a_site_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(
        textwrap.dedent("""\
            account: two words
            gputype: a100
            gpu_memory_gb: 4
            modules: cuda
            container: docker/holdfast.sif
            scratch: $TMPDIR
            partitions:
              cpu:
              gpu: {max_runtime: soon, max_gpu: -1}
            """)
    )
    with pytest.raises(ConfigError) as caught:
        read_site(path)
    told = "\n".join(caught.value.mistakes)
    for part in (
        "account: 'two words' is not one plain word",
        "gputype: unknown key; did you mean gpu_type?",
        "gpu_memory_gb: 4 GB hold no model; correct it, or say 0 for no GPUs",
        "container: 'docker/holdfast.sif' is no absolute path; give it from the root",
        "scratch: '$TMPDIR' is not one plain word",
    ):
        assert part in told
    for part in (
        "modules: ",
        "partitions.cpu: empty",
        "partitions.gpu.max_runtime: 'soon' is no time",
        "max_gpu: -1",
    ):
        assert part in told
    assert len(caught.value.mistakes) == 9


def test_modules_where_the_shell_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODULESHOME", raising=False)
    (finding,) = doctor.modules(Site(modules=["cuda/12.8"]))
    assert (finding.where, finding.what) == ("modules", "this shell has none (MODULESHOME is not set)")
    assert load([]) == ""


def test_provenance_says_what_was_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LOADEDMODULES", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    Recorder("tables", {}).write(tmp_path / "bare.json", [])
    assert not {"container", "modules"} & set(read_json(tmp_path / "bare.json"))
    monkeypatch.setenv("LOADEDMODULES", "gcc/12:cuda/12.8")
    monkeypatch.setenv("APPTAINER_CONTAINER", "/shared/holdfast.sif")
    Recorder("tables", {}).write(tmp_path / "around.json", [])
    found = read_json(tmp_path / "around.json")
    assert found["container"] == "/shared/holdfast.sif"
    assert found["modules"] == ["gcc/12", "cuda/12.8"]


def test_a_site_file_without_partitions_is_told_before_the_plugin_stops(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("account: lab\n")
    with pytest.raises(ConfigError, match="partitions: missing; add it"):
        read_site(path)


def test_the_shipped_site_file_is_right() -> None:
    assert read_site(Path(__file__).parents[2] / "profiles/slurm/site.yaml") == Site()
