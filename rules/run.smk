# How a run plans, and what it does before its first job and after its last.
import atexit
import gc
import subprocess

from holdfast.cluster.claim import RUN, claim, release
from holdfast.cluster.commands import prepare
from holdfast.cluster.undone import single, undone
from holdfast.config.backend import record

# Snakemake makes millions of objects that stay while it plans. With Python's own thresholds the collector looks at them
# over and over, and once more when the process ends: a third of the time that planning takes.
gc.set_threshold(200_000, 30, 30)
atexit.register(gc.freeze)

MOST_TOLD = 20  # failed jobs
DEFAULT_RATE = (100, 1)  # jobs and seconds of Snakemake's --max-jobs-per-timespan
LONG_AGO = 946684800  # 2000-01-01, seconds
CLAIMS = []  # the study's lock, held while this process lives


def without_idle_passes():
    """Take away Snakemake's own limit of job starts, unless the user has set one.

    With a limit, every job that ends starts a timer that makes one pass over all ready jobs a second, and never stops
    (9.27): after a few hundred jobs Snakemake keeps a core busy, after some thousands it does nothing else.
    """
    limit = workflow.scheduler.job_rate_limiter
    if limit and (limit.max_jobs, limit.timespan) == DEFAULT_RATE:
        workflow.scheduler.job_rate_limiter = None


def refuse_other_deployment():
    """A user's own --sdm takes the place of the profile's: jobs would run outside the site file's container."""
    methods = {m.name.lower() for m in workflow.deployment_settings.deployment_method}
    if here().container and "apptainer" not in methods:
        raise HoldfastError(
            "leaves out the container of the site file",
            f"--software-deployment-method {' '.join(sorted(methods))}",
            "add apptainer, or set container to null",
        )


def begin():
    """Before the first job: claim the study, so that nothing else writes into it. Ends a run that cannot begin."""
    without_idle_passes()
    executor = workflow.scheduler._executor
    by_slurm = type(executor).__module__.startswith("snakemake_executor_plugin_slurm")
    run = executor.run_uuid if by_slurm else None  # the name of all its Slurm jobs
    try:
        if by_slurm:
            refuse_other_deployment()
            prepare(Path(workflow.basedir, "profiles/slurm"))
        CLAIMS.append(
            claim(
                Path("results", STUDY.study),
                run,
                say=lambda line: print(line, file=sys.stderr),
            )
        )
        record(ANSWERS, Path("results", STUDY.study))
    except HoldfastError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if run:
        os.environ.update({RUN: run})


def end():
    """All jobs have ended, well or not; after Ctrl-C they may be about to."""
    while CLAIMS:
        release(CLAIMS.pop(), Path("results", STUDY.study), os.environ.get(RUN))


def tell_failures(workflow):
    """Which jobs failed and where they say why, whatever Snakemake was told to keep quiet about."""
    failed = single(workflow.scheduler.failed)
    lines = [
        f"failed: {job.rule.name} {os.sep.join(job.wildcards)}: see {' '.join(job.log)}"
        for job in failed[:MOST_TOLD]
    ]
    if (more := len(failed) - MOST_TOLD) > 0:
        lines.append(f"and {more} more, in results/{STUDY.study}/logs")
    if profiled():
        lines.append(
            "A log that says nothing is of a job that was ended from outside, for its memory or its time: the reason is"
            " in .snakemake/slurm_logs (docs/cluster.md)."
        )
    lines.append("Run the same command again to go on where it stopped.")
    print(*lines, sep="\n", file=sys.stderr)


def write_with_gaps(workflow):
    """After a run in which jobs failed: the tables, figures and page of what is there, missing cells marked."""
    results = Path("results", STUDY.study)
    tables, page = results / "tables", results / "report/index.html"
    left = undone(workflow.dag, workflow.scheduler.failed, results)
    waiting = {job.rule.name: job for job in workflow.dag.needrun_jobs()}.get("tables")
    failed = {stage for job in left for stage in job["failed"]}
    if waiting is None or failed & {"tables", "figures", "report"}:
        return  # not asked for, or not for a lack of results
    listed = results / "logs/undone.json"
    listed.parent.mkdir(exist_ok=True)
    listed.write_text(json.dumps(left, indent=1) + "\n")
    of_study = ["--config", STUDY_FILE, "--results", results]
    commands = [
        ["tables", tables, *of_study, "--undone", listed],
        ["figures", results / "figures", "--tables", tables],
        ["report", page, *of_study],
    ]
    for command in commands:
        if subprocess.run(["holdfast", *command], check=False).returncode:
            return
        # Snakemake shall take these tables for older than any result, whatever it remembers of earlier ones, so that
        # the next run makes them again, and with them the figures and the page.
        for file in waiting.output:
            os.utime(file, (LONG_AGO, LONG_AGO))
            workflow.persistence.cleanup_metadata(file)
    print(f"What is there, missing cells marked: {tables}, {page}", file=sys.stderr)
