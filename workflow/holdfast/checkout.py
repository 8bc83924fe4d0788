"""The repository that this package runs from; where the package was installed without it, nothing is there."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = (
    ROOT / ".environments"
)  # of backends that cannot share the core's packages (rules/environments.smk)
