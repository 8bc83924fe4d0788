"""What jobs of study L ask for, all of whose models have one size."""

from pathlib import Path
from typing import Any

from holdfast.cluster.needs import Asked, Requests
from holdfast.cluster.site import Site
from holdfast.cluster.sizes import Size, size_of
from holdfast.config import Study

REFUSAL = Path(__file__).parents[1] / "config/refusal.yaml"
CELL = {"model": "llama-2-7b", "compression": "gptq-w4", "method": "aird"}
OF_RULE = {
    "fetch_judge": {"judge": "wildguard"},
    "judge_by_model": CELL | {"judge": "wildguard"},
    "judge_attack_by_model": CELL | {"judge": "wildguard", "attack": "drawn"},
    "attack": CELL | {"attack": "drawn"},
    "steer": CELL | {"method": "steer"},
    "tune": CELL | {"method": "tune"},
    "recalibrate": CELL | {"method": "recalibrate"},
}


class Known:
    """Every model has the same size."""

    def __init__(self, config: dict[str, Any] | None) -> None:
        self.size = size_of(config) if config else None

    def of(self, kind: str, name: str) -> Size | None:
        return self.size


def asked(study: Study, config: dict[str, Any] | None, rule: str, **options: Any) -> Asked:
    names = OF_RULE.get(rule, CELL) | options.pop("names", {})
    attempt = options.pop("attempt", 1)
    of_site = ("gpu_memory_gb", "gpu_type", "partitions")
    site = Site(**{key: options.pop(key) for key in of_site if key in options})
    return Requests(study, Known(config), lambda: site, **options).of(rule, tuple(names.items()), attempt)
