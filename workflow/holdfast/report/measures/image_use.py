"""Whether a checkpoint's answers and refusals depend on the images of pairs."""

from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.files import read_json
from holdfast.records import Record, require
from holdfast.report.measures.reading import band, point
from holdfast.statistics import Rate

MEASURES = {
    "image_distance_blank[MODALITY]": "total variation (0..1) between the distributions of the first answer token with "
    "a half's own image and with a blank one; bootstrap over halves",
    "image_distance_other[MODALITY]": "the same with another pair's image",
    "image_distance_again[MODALITY]": "the null: the same with its own image in another batch",
    "image_score_difference[MODALITY]": "refusal score (log-odds) of the harmful half less that of its question "
    "about the benign half's image; bootstrap over the pairs whose halves show two images, empty with fewer than two",
    "image_one_image[MODALITY]": "pairs whose halves show one image, left out of the difference",
    "image_score_blank[MODALITY]": "refusal score of the harmful half less that of its question about a blank image; "
    "bootstrap over pairs",
    "image_refusals[MODALITY]": "1 when both intervals of the score lie above 0 (refusals use the image), else 0; "
    "empty without the difference",
}


class _Use(Record):
    distance_blank: dict[str, float]
    distance_other: dict[str, float]
    distance_again: dict[str, float]
    score_difference: dict[str, float] | None
    one_image: int
    score_blank: dict[str, float]
    refusals_use_image: bool | None


def image_use(path: Path) -> dict[str, Rate]:
    """The measures of ``MODEL/COMPRESSION/image-use.json``; none where it is missing."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = read_json(path)
    remedy = "delete it and run `holdfast image-use`"
    if not isinstance(found, dict):
        raise HoldfastError("not a JSON object", str(path), remedy)
    measured = {}
    for modality, use in found.items():
        require(_Use, use, f"{path}, {modality}", remedy)
        for name in ("distance_blank", "distance_other", "distance_again", "score_difference", "score_blank"):
            rate = band(use[name], "value")
            measured[f"image_{name}[{modality}]"] = rate._replace(n=int(rate.n))
        measured[f"image_one_image[{modality}]"] = point(use["one_image"])
        measured[f"image_refusals[{modality}]"] = point(use["refusals_use_image"])
    return measured
