"""A cluster as it is now, and what there is to say of it."""

from typing import NamedTuple

from holdfast.cluster.commands import records, settings, slurm


class Finding(NamedTuple):
    """A line of the diagnosis; ``remedy`` is empty where all is well."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return (
            f"wrong: {self.where}: {self.what}; {self.remedy}"
            if self.remedy
            else f"well: {self.where}: {self.what}"
        )


class Live(NamedTuple):
    """A cluster as it is now, in Slurm's own words."""

    partitions: dict[str, dict[str, str]]
    nodes: list[dict[str, str]]
    config: dict[str, str]

    def nodes_of(self, partition: str) -> list[dict[str, str]]:
        return [n for n in self.nodes if partition in n.get("Partitions", "").split(",")]

    def default(self) -> str | None:
        return next((name for name, p in self.partitions.items() if p.get("Default") == "YES"), None)


def look() -> Live:
    """Ask the controller. Raises HoldfastError where it does not answer."""
    partitions = records(slurm("scontrol", "show", "partition", "--oneliner"))
    return Live(
        {p["PartitionName"]: p for p in partitions},
        records(slurm("scontrol", "show", "node", "--oneliner")),
        settings(slurm("scontrol", "show", "config")),
    )
