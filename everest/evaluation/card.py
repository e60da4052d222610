"""The model card of exported weights, with the front matter of the Hugging Face hub."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from huggingface_hub import ModelCard, ModelCardData

from everest.checkpoints.describe import describe_sampling, find_training_clip
from everest.checkpoints.load import ONNX_SUFFIX, LoadedModel, is_timm_name
from everest.config.recipe import load_recipe
from everest.errors import RecipeError
from everest.metrics.names import metric_rows, views_text
from everest.models.clip_spec import ClipSpec, ModelSpec
from everest.models.cost import count_tokens, total_macs
from everest.system.run_folder import MODEL_FOLDER, RECIPE_FILE
from everest.system.text import damage_errors, load_json

REQUIRED_KEYS: Final = ("videos", "groups", "skipped", "views", "checkpoint", "recipe")
NO_EVALUATION: Final = (
    "None was given: write one with `everest eval --json > eval.json`, and name it with `--evaluation`."
)


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read the document that `everest eval --json` printed."""
    fix = f"write it with everest eval --json > {shlex.quote(str(path))}"
    with damage_errors(path, fix=fix):
        document = load_json(path, fix=fix)
        itemgetter(*REQUIRED_KEYS)(document)  # raises KeyError if another program wrote the file
        itemgetter("clips", "crops")(document["views"])
    return document


def model_card(
    opened: LoadedModel,
    *,
    evaluation: dict[str, Any] | None,
    file: str,
    tested: Sequence[str] = (),
    speed: Sequence[str] = (),
) -> str:
    """Return the text of a card: data, metrics with intervals, license, cost, and how to use the weights.

    Args:
        evaluation: the document of `everest eval --json` for these weights; None: the card has no metrics.
        file: the name of the exported file next to the card.
        tested: lines about the accuracy, used if there is no evaluation.
        speed: lines about the time for a clip.
    """
    spec, weights = opened.spec, opened.weights
    assert isinstance(spec, ClipSpec)
    if evaluation is not None:
        heads = {head.name for head in spec.heads}
        classes = [row["name"] for row in evaluation.get("per_class", ())]
        has_other_classes = classes and weights.classes and classes != list(weights.classes)
        if heads != set(evaluation.get("heads", {"": None})) or has_other_classes:
            raise RecipeError(
                f"--evaluation: of {evaluation['checkpoint']}, a model with other heads or classes; evaluate "
                f"{opened.file}"
            )
    if file.endswith(ONNX_SUFFIX):
        use = (
            f"```python\nimport onnxruntime\n\nmodel = onnxruntime.InferenceSession({json.dumps(file)})\n```"
        )
        use += "\n\nIts metadata states the preprocessing"
        use += "; `classify.py` beside it reads a video or a camera." * (weights.kind == "classifier")
    else:
        command = "predict" if weights.kind == "classifier" else "extract"
        output = "" if command == "predict" else " --output features.npz"
        use = f"```sh\neverest {command} video.mp4 --checkpoint {shlex.quote(file)}{output}\n```"
    folder = opened.file.parent
    name = (folder.parent if folder.name == MODEL_FOLDER else folder).name or opened.file.stem
    data = ModelCardData(
        library_name="everest",
        pipeline_tag="video-classification" if weights.kind == "classifier" else None,
        tags=["video", "everest", weights.kind],
        model_name=name,
    )
    sections = {
        "Model": [*_model_lines(opened, spec), *speed],
        "Data": _data_lines(opened, is_evaluated=evaluation is not None),
        "Accuracy": accuracy_lines(evaluation) if evaluation else tested or [NO_EVALUATION],
        "Use": [use],
    }
    body = "\n\n".join("\n".join([f"## {title}", "", *lines]) for title, lines in sections.items())
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{body}\n"))


def _model_lines(opened: LoadedModel, spec: ClipSpec) -> Iterator[str]:
    clip = find_training_clip(opened)
    parameters = sum(parameter.numel() for parameter in opened.model.parameters())
    height, width = spec.size
    trained = f" of step {opened.weights.step}, recipe `{opened.weights.recipe}`"
    yield f"- {opened.weights.kind}{trained if opened.weights.step else ''}"  # step 0: solved or averaged
    yield f"- {spec.title}"
    yield f"- {parameters:,} parameters, {total_macs(spec) / 1e9:.2f} GMACs for a clip"
    for part in spec.parts.values():
        if isinstance(part, ModelSpec):
            counts = count_tokens(part)
            yield f"- encodes {counts.visible} of {counts.total} tokens of a clip ({part.selection.strategy})"
    frames = f"{spec.frames} frames of {height} x {width} pixels"
    sampling = clip and describe_sampling(stride=clip.stride, sampling=clip.sampling, fps=clip.fps)
    yield f"- clips: {frames}; {sampling or 'the weights do not state their stride'}"


def _data_lines(opened: LoadedModel, *, is_evaluated: bool) -> Iterator[str]:
    run = opened.file.parent / RECIPE_FILE
    if run.is_file():
        data = load_recipe(run, imports=False).data
        lists = {"trained on": data.train, "validated on": data.val}
        lists |= {"evaluated on": data.test} if is_evaluated else {}
        if opened.weights.kind == "pretrain":
            lists = {"trained on": data.pretrain or data.train}
        yield from (f"- {title} `{Path(name).name}`" for title, name in lists.items() if name)
    origin: Mapping[str, Any] | None = opened.weights.origin
    while origin:
        license_name = origin.get("licence") or "not stated"
        file = str(origin.get("file"))
        name = file.partition("=")[0] if is_timm_name(file) else Path(file).name
        yield f"- started from `{name}`, license: {license_name}"
        origin = origin.get("origin")
    if opened.weights.classes:
        yield f"- classes: {', '.join(opened.weights.classes)}"
    yield "- before you publish the weights, add their license, and source and consent of the videos"


def accuracy_lines(document: dict[str, Any]) -> Iterator[str]:
    yield f"| {views_text(document)} | value | 95 % interval | chance |"
    yield "|---|---|---|---|"
    for cells in metric_rows(document):
        escaped = [cell.replace("|", r"\|") for cell in cells]  # a head's name may contain it
        yield f"| {' | '.join(escaped)} |"
    groups = f" of {document['groups']} groups" if document["groups"] < document["videos"] else ""
    yield ""
    videos = f"{document['videos']} videos{groups}, {document['skipped']} unreadable"
    file = Path(document["checkpoint"]).name
    yield f"Measured with `{file}` and recipe `{document['recipe']}` on {videos}."
