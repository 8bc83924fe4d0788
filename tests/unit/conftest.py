"""What several test modules start from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from good_study import GOOD
from holdfast.config import Study, load_study
from planted import planted_llama
from written_results import write_results


@pytest.fixture(scope="module")
def planted_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    return planted_llama(tmp_path_factory.mktemp("planted") / "tiny")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Study]:
    monkeypatch.chdir(tmp_path)

    def of(config: dict[str, Any]) -> Study:
        Path("study.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return load_study(Path("study.yaml"))

    return of


@pytest.fixture
def study(load: Callable[[dict[str, Any]], Study]) -> Study:
    return load(GOOD)
