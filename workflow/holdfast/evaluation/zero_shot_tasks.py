"""Zero-shot tasks: ours, standard ones over local files, and the harness's built-in ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.config.recipes import OWN_TASK
from holdfast.errors import HoldfastError

OWN_DATA = Path(__file__).parent.parent / "data" / "multiple_choice.jsonl"

# The harness's own prompt of each standard task, over the columns of a local file
# (context, question, choices, label).
QUESTION = "Question: {{question}}\nAnswer:"
LOCAL_PROMPTS: dict[str, dict[str, str]] = {
    "arc_easy": {"doc_to_text": QUESTION},
    "arc_challenge": {"doc_to_text": QUESTION},
    "piqa": {"doc_to_text": QUESTION},
    "openbookqa": {"doc_to_text": "{{question}}"},
    "boolq": {"doc_to_text": "{{context}}\nQuestion: {{question}}?\nAnswer:"},
    "hellaswag": {"doc_to_text": "{{context}}"},
    # Partial scoring: each choice is put into the blank, and what follows the blank is scored.
    "winogrande": {
        "doc_to_text": "label",
        "doc_to_choice": "{{[question.split('_')[0] + choices[0], question.split('_')[0] + choices[1]]}}",
        "doc_to_target": "{{question.split('_', 1)[1].strip()}}",
    },
}


def local_task(name: str, file: Path, prompt: Mapping[str, str]) -> dict[str, Any]:
    """A harness task over a local JSONL file with columns context, question, choices, label."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [
            {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
        **prompt,
    }


def local_data(names: Sequence[str], folder: Path | None) -> dict[str, Path]:
    """The file of each task whose data lie here; the harness brings the others' from the hub.

    Raises HoldfastError when ``folder`` is given and holds no file of a task, or its prompt is not known here.
    """
    found = {}
    for name in names:
        if name == OWN_TASK:
            found[name] = OWN_DATA
        elif folder is not None:
            files = [folder / f"{name}.{split}.jsonl" for split in ("test", "validation")]
            file = next((f for f in files if f.is_file()), None)
            if file is None or name not in LOCAL_PROMPTS:
                raise HoldfastError(
                    f"no local data for task {name}",
                    str(folder),
                    f"put {name}.test.jsonl there (tasks: {', '.join(LOCAL_PROMPTS)}), or drop `folder`",
                )
            found[name] = file
    return found


def tasks(names: Sequence[str], folder: Path | None) -> list[str | dict[str, Any]]:
    """Each task as the harness takes it: over a local file, or the name of a built-in one.

    Raises HoldfastError as :func:`local_data`.
    """
    local = local_data(names, folder)
    prompts = LOCAL_PROMPTS | {OWN_TASK: {"doc_to_text": "{{question}}"}}
    return [local_task(name, local[name], prompts[name]) if name in local else name for name in names]
