"""What the site file says of a job's node: modules, a container, scratch space. Changing it makes nothing stale.

Debian 12 has no Apptainer. Where none is installed a stand-in takes its place, which knows the command line that
Snakemake calls it by and no more: it shuts nothing in.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import CannotStartError, Cluster, install_packages
from studies import PARTITIONS, Run, almost_finished, copy_profile, running
from test_doctor_live import doctor
from workflows import Workflow

HOME = Path("/usr/share/modules")  # of Debian's package environment-modules
STAND_IN = """\
[ "$1" = --version ] && echo apptainer version 1.4.5 && exit
[ "$1 $2 $3" = "exec --home $PWD" ] || {{ echo "not understood: $*" >&2; exit 1; }}
shift 3
while [ "$1" = --bind ]; do shift 2; done
[ "$1" = {image} ] || {{ echo "not understood: $*" >&2; exit 1; }}
export APPTAINER_CONTAINER=$1 PATH={path}
shift
exec "$@"
"""
SEEN = 'env | grep -E "^(LOADEDMODULES|HOLDFAST_TEST_MODULE|APPTAINER_|HOLDFAST_SCRATCH|TMPDIR)" | sort > seen-$1\n'


@pytest.fixture
def modules(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    """A module of the name ``tested/1.0``."""
    if not HOME.is_dir():
        try:
            install_packages(["environment-modules"])
        except CannotStartError as reason:
            pytest.skip(str(reason))
    (tmp_path / "modules/tested").mkdir(parents=True)
    (tmp_path / "modules/tested/1.0").write_text("#%Module1.0\nsetenv HOLDFAST_TEST_MODULE loaded\n")
    before = dict(cluster.environment)
    cluster.environment |= {"MODULESHOME": str(HOME), "MODULEPATH": str(tmp_path / "modules")}
    yield
    cluster.environment.clear()
    cluster.environment.update(before)


def image(cluster: Cluster, folder: Path, commands: Path) -> Path:
    """A folder as Apptainer takes one for an image, with commands that come first on its PATH."""
    path = f"{commands}:/usr/bin:/bin"
    shown = [
        p for p in Path("/").iterdir() if p.is_dir() and p.name not in {"dev", "proc", "sys", "tmp", "etc"}
    ]
    for name in ["dev", "proc", "sys", "tmp", "etc", ".singularity.d/env", *(p.name for p in shown)]:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("passwd", "group", "hosts", "resolv.conf", "localtime"):
        (folder / "etc" / name).touch()
    settings = folder / ".singularity.d/env/90-environment.sh"
    settings.write_text(f"export PATH={path}\n")
    settings.chmod(0o755)
    cluster.environment["APPTAINER_BIND"] = ",".join(map(str, shown))
    if shutil.which("apptainer") is None:
        cluster.replace("apptainer", STAND_IN.format(image=folder, path=path))
    return folder


def test_jobs_have_modules_container_and_scratch_and_nothing_is_stale_for_it(
    cluster: Cluster, modules: None, finished: Workflow, tmp_path: Path
) -> None:
    workflow = almost_finished(finished, tmp_path / "study", "wanda-40/aird/ability")
    box, scratch = image(cluster, tmp_path / "box", workflow.folder / "bin"), tmp_path / "scratch"
    scratch.mkdir()
    (workflow.folder / "trouble").write_text(SEEN)
    shutil.rmtree(workflow.folder / "slurm")
    copy_profile(
        workflow.folder,
        {"modules": ["tested/1.0"], "container": str(box), "scratch": str(scratch), "partitions": PARTITIONS},
    )
    with running(workflow, cluster) as run:
        run.well()
    seen = dict(line.split("=", 1) for line in (workflow.folder / "seen-ability").read_text().splitlines())
    assert (seen["LOADEDMODULES"], seen["HOLDFAST_TEST_MODULE"]) == ("tested/1.0", "loaded")
    assert seen["APPTAINER_CONTAINER"] == str(box)
    assert str(workflow.folder / "results") in seen["APPTAINER_BIND"].split(",")
    assert (seen["TMPDIR"], seen["HOLDFAST_SCRATCH"]) == (str(scratch), str(scratch))
    assert str(scratch) in seen["APPTAINER_BIND"].split(",")
    here = (workflow.folder / "seen-tables").read_text()  # on the machine that Snakemake runs on
    assert "LOADEDMODULES" not in here
    assert "APPTAINER_CONTAINER" not in here
    assert "HOLDFAST_SCRATCH" not in here
    assert workflow.planned() == {}
    shutil.rmtree(workflow.folder / "slurm")
    copy_profile(workflow.folder, {"container": "/another.sif", "partitions": PARTITIONS})
    code, log = Run(workflow, cluster, "--dry-run").ended()
    assert code == 0
    assert "Nothing to be done" in log


def test_the_doctor_tries_them(cluster: Cluster, modules: None, tmp_path: Path) -> None:
    site = {"modules": ["tested/1.0", "unheard/2"], "container": str(tmp_path / "no.sif"), "partitions": {}}
    code, told = doctor(tmp_path / "wrong", cluster, site)
    assert code == 2
    assert [line for line in told.splitlines() if line.startswith("wrong")] == [
        "wrong: module unheard/2: there is none of that name; choose from: module avail",
        f"wrong: container: {tmp_path}/no.sif is not there; build or copy it to where all nodes see it",
    ]
    site = {"modules": ["tested/1.0"], "scratch": str(tmp_path / "scratch"), "partitions": {}}
    code, told = doctor(tmp_path / "scratchless", cluster, site, "--try-job")
    assert f"wrong: a job in cpu: no folder {tmp_path}/scratch to write into; " in told
    (tmp_path / "scratch").mkdir()
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python3"
    python.write_text(
        f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    )  # by a link, Python would not see its packages
    python.chmod(0o755)
    site["container"] = str(image(cluster, tmp_path / "box", tmp_path / "bin"))
    code, told = doctor(tmp_path / "right", cluster, site, "--try-job")
    assert code == 0, told
    python.write_text("#!/bin/sh\nexit 1\n")
    code, told = doctor(tmp_path / "broken", cluster, site, "--try-job")
    assert "wrong: a job in cpu: " in told
