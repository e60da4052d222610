"""The model card of exported weights, with the front matter of the Hugging Face hub. Its text is card.md."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined

from everest.checkpoints.describe import describe_sampling, find_training_clip
from everest.checkpoints.load import CHOSEN_FOLDER, LoadedModel, is_timm_name
from everest.config.recipe import load_recipe
from everest.errors import RecipeError
from everest.metrics.names import metric_rows, views_text
from everest.models.clip_spec import ClipSpec, ModelSpec
from everest.models.cost import count_tokens, total_macs
from everest.system.run_folder import RECIPE_FILE
from everest.system.text import damage_errors, load_json

TEMPLATE: Final = Path(__file__).with_suffix(".md")
REQUIRED_KEYS: Final = ("videos", "groups", "skipped", "views", "checkpoint", "recipe")


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read the document that `everest eval --json` printed."""
    fix = f"write it with everest eval --json > {shlex.quote(str(path))}"
    with damage_errors(path, fix=fix):
        document = load_json(path, fix=fix)
        itemgetter(*REQUIRED_KEYS)(document)  # raises KeyError if another program wrote the file
        itemgetter("clips", "crops")(document["views"])
    return document


def model_card(
    loaded: LoadedModel,
    *,
    evaluation: dict[str, Any] | None,
    file: str,
    tested: Sequence[str] = (),
    speed: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the text of a card: data, metrics with intervals, license, cost, and how to use the weights.

    Args:
        evaluation: the document of `everest eval --json` for these weights; None: the card has no metrics.
        file: the name of the exported file next to the card: an ONNX file, or the weights of transformers.
        tested: lines about the accuracy, used if there is no evaluation.
        speed: lines about the time for a clip.
        notes: where transformers computes something else.
    """
    spec, weights, clip = loaded.spec, loaded.weights, find_training_clip(loaded)
    assert isinstance(spec, ClipSpec)
    if evaluation is not None:
        _refuse_other_model(evaluation, loaded, spec)
    folder = loaded.file.parent
    name = (folder.parent if folder.name == CHOSEN_FOLDER else folder).name or loaded.file.stem
    front = ModelCardData(
        library_name="everest" if file.endswith(".onnx") else "transformers",
        pipeline_tag="video-classification" if weights.kind == "classifier" else None,
        tags=["video", "everest", weights.kind],
        model_name=name,
    )
    transformers = [part for part in spec.parts.values() if isinstance(part, ModelSpec)]
    sampling = clip and describe_sampling(stride=clip.stride, sampling=clip.sampling, fps=clip.fps)
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        front=front.to_yaml(),
        name=name,
        weights=weights,
        spec=spec,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        gmacs=total_macs(spec) / 1e9,
        selections=[(part.selection.strategy, count_tokens(part)) for part in transformers],
        sampling=sampling or "the weights do not state their stride",
        speed=speed,
        notes=notes,
        lists=_find_lists(loaded, is_evaluated=evaluation is not None),
        origins=_list_origins(weights.origin),
        evaluation=evaluation,
        views=evaluation and views_text(evaluation),
        metrics=evaluation and metric_rows(evaluation),
        tested=tested,
        file=file,
    )


def _refuse_other_model(evaluation: dict[str, Any], loaded: LoadedModel, spec: ClipSpec) -> None:
    """Raise RecipeError if an evaluation is that of a model with other heads or classes."""
    heads = {head.name for head in spec.heads}
    classes, names = [row["name"] for row in evaluation.get("per_class", ())], loaded.weights.classes
    is_other = heads != set(evaluation.get("heads", {"": None}))
    if is_other or (classes and names and classes != list(names)):
        problem = f"of {evaluation['checkpoint']}, a model with other heads or classes"
        raise RecipeError(f"--evaluation: {problem}; evaluate {loaded.file}")


def _find_lists(loaded: LoadedModel, *, is_evaluated: bool) -> dict[str, str | None]:
    """Return the lists of a model's run, by their use; none without its recipe."""
    recipe = loaded.file.parent / RECIPE_FILE
    if not recipe.is_file():
        return {}
    data = load_recipe(recipe, imports=False).data
    if loaded.weights.kind == "pretrain":
        return {"trained on": data.pretrain or data.train}
    lists = {"trained on": data.train, "validated on": data.val}
    return {**lists, "evaluated on": data.test if is_evaluated else None}


def _list_origins(origin: Mapping[str, Any] | None) -> Iterator[tuple[str, str | None]]:
    """Yield the name and the license of the weights that training started from, and of theirs."""
    while origin:
        file = str(origin.get("file"))
        yield file.partition("=")[0] if is_timm_name(file) else Path(file).name, origin.get("licence")
        origin = origin.get("origin")
