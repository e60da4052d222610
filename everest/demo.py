"""The whole path on videos rendered here: pre-train, fine-tune, test, and the same without pre-training."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from everest.assemble import Place, start_run
from everest.clips import pretrain_clips
from everest.config.recipe import dump_recipe, load_recipe
from everest.config.settings import Recipe
from everest.demo_videos import CLASSES, DEMO_SET
from everest.devices import make_accelerator
from everest.errors import RecipeError
from everest.evaluate import evaluate
from everest.finetune import finetune, set_up_finetuning
from everest.load import load_model
from everest.mask_view import view_model
from everest.models.mae import MaskedAutoencoder
from everest.pictures import draw_views
from everest.pretrain import pretrain, set_up_pretraining
from everest.reports import Report, notice
from everest.run_folder import RunFolder
from everest.stopping import Stopped

VIDEOS, PICTURE, REPORT = "demo-videos", "reconstruction.png", "report.md"
RUNS = ("pretrain", "finetune-pretrained", "finetune-scratch")


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Percent of the test videos, and seconds of each stage."""

    pretrained: float
    from_scratch: float
    chance: float
    seconds: dict[str, float]


def clear_demo(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a demo may write into `folder`; with `overwrite` remove what an earlier one left.

    Raises:
        RecipeError: something else is there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / VIDEOS).is_dir():
        raise RecipeError(f"--output {folder}: exists and holds no demo; choose another folder")
    if not overwrite:
        raise RecipeError(f"--output {folder}: holds a demo; choose another folder, or use --overwrite")
    for name in (VIDEOS, *RUNS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (PICTURE, REPORT):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps this small are slower on two threads than on one; the loader uses the other core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def run_demo(folder: Path, *, seed: int, report: Report) -> DemoResult:
    """Render the set, run every stage with the `demo` recipe, write the report. All on the CPU.

    Everything lies in `folder`: the videos, one run folder a stage, `report.md` and its picture.
    """
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        report(notice(f"demo: {stage}"))
        began = time.monotonic()
        try:
            result = work()
        except Stopped as stopped:
            raise Stopped(stopped.number, "stopped; everest demo --overwrite begins again") from stopped
        seconds[stage] = round(time.monotonic() - began, 1)
        return result

    data = folder / VIDEOS
    timed("rendering videos", lambda: DEMO_SET.write(data, seed=seed))
    recipe = load_recipe("demo", overrides=[f'data.root="{data.resolve()}"', f"train.seed={seed}"])
    encoder = timed("pre-training", lambda: _pretrain(recipe, folder / "pretrain", report))
    top1 = {}
    for name, init in (("pretrained", encoder), ("scratch", None)):
        run = folder / f"finetune-{name}"
        weights = timed(
            f"fine-tuning, {name}", lambda run=run, init=init: _finetune(recipe, run, init, report)
        )
        top1[name] = timed(f"testing, {name}", lambda weights=weights: _test(recipe, weights, report))
    _draw(recipe, encoder, folder / PICTURE)
    result = DemoResult(
        pretrained=top1["pretrained"],
        from_scratch=top1["scratch"],
        chance=100 / len(CLASSES),
        seconds=seconds,
    )
    (folder / REPORT).write_text(report_text(recipe, result))
    return result


def _pretrain(recipe: Recipe, folder: Path, report: Report) -> Path:
    place = _place(recipe, folder, report)
    training = set_up_pretraining(recipe, place)
    start_run(training, place, dump_recipe(recipe), init=None)
    pretrain(training)
    return place.run.weights


def _finetune(recipe: Recipe, folder: Path, init: Path | None, report: Report) -> Path:
    place = _place(recipe, folder, report)
    training, validation = set_up_finetuning(recipe, place, init=init)
    start_run(training, place, dump_recipe(recipe), init=init and str(init.resolve()))
    finetune(training, recipe.finetune, validation)
    return place.run.weights


def _place(recipe: Recipe, folder: Path, report: Report) -> Place:
    accelerator = make_accelerator(recipe.train, cpu=True)
    return Place(accelerator=accelerator, run=RunFolder(folder), resumed=False, report=report)


def _test(recipe: Recipe, weights: Path, report: Report) -> float:
    return evaluate(recipe, weights, make_accelerator(recipe.train, cpu=True), report=report)["top1"]


def _draw(recipe: Recipe, weights: Path, path: Path) -> None:
    model = load_model(weights)
    assert isinstance(model, MaskedAutoencoder)
    clip = pretrain_clips(recipe).read((0, 0))
    view = view_model(model, clip.frames[0], noise=clip.noise[0])
    draw_views(path, [view], title="what is kept, seen and predicted")


def report_text(recipe: Recipe, result: DemoResult) -> str:
    """The report, as Markdown."""
    stages = "\n".join(f"| {stage} | {seconds} |" for stage, seconds in result.seconds.items())
    return f"""# everest demo

| model | top-1 |
|---|---|
| pre-trained on unlabelled clips, then fine-tuned | {result.pretrained:.1f} % |
| the same fine-tuning from scratch | {result.from_scratch:.1f} % |
| chance | {result.chance:.1f} % |

Task: {len(CLASSES)} classes told apart by motion only ({", ".join(CLASSES)}),
with a handful of labelled clips each. That is where pre-training pays: with many labels the model from
scratch catches up here. Recipe: `everest recipes show demo`; seed {recipe.train.seed}.

![kept, seen and predicted tokens]({PICTURE})

Grey is left out. The encoder sees the third row only; what the decoder predicts from it is the rest of the
fourth. The run folders beside this report can be used further, such as
`everest eval --checkpoint finetune-pretrained`.

| stage | seconds |
|---|---|
{stages}
"""
