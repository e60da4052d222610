"""The accuracy of an exported file, which sees one view of a video, beside that of `everest train`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from everest.config.recipe import load_recipe
from everest.evaluation.evaluation import EvaluationFiles, evaluate
from everest.metrics.names import METRICS, value_text
from everest.project.request import RESULT
from everest.project.result import ProjectResult
from everest.project.verdict import result_lines
from everest.system.compute import Runtime
from everest.system.events import Report, heading
from everest.system.files import IN_USE_FIX
from everest.system.run_folder import MODEL_FOLDER, PROJECT_FILE, RECIPE_FILE
from everest.system.text import counted


@dataclass(frozen=True, kw_only=True)
class ExportedAccuracy:
    """The metric of a project's task on its test videos, before and after the export."""

    metric: str
    trained: float  # as `everest train` reports it
    trained_views: int  # of a video
    exported: float | None  # of the file; None: the project was tested in folds, and has no test list
    videos: int  # of the test

    def __str__(self) -> str:
        name, videos = METRICS[self.metric].title, counted(self.videos, "test video")
        views = counted(self.trained_views, "view")
        trained = f"{name} of train {value_text(self.metric, self.trained)} ({views} of {videos}"
        if self.exported is None:
            return f"{trained} in folds); the file was not tested, as its model has learned from all videos"
        return f"{trained}), of the file {value_text(self.metric, self.exported)} (1 view)"


def project_result(weights: Path) -> ProjectResult | None:
    """The result of the finished project whose delivered model `weights` are; None: of no such project."""
    folder = weights.parent.parent
    has_project = all((folder / name).is_file() for name in (PROJECT_FILE, RESULT))
    if weights.parent.name != MODEL_FOLDER or not has_project:
        return None
    return ProjectResult.read(folder / RESULT, fix=IN_USE_FIX)


def card_lines(result: ProjectResult) -> list[str]:
    """The accuracy that `everest train` reported, for a model card."""
    tested = f"in {len(result.folds)} folds; this model has learned from all videos" if result.folds else ""
    return [f"- {line}" for line in (f"tested by `everest train` {tested}".strip(), *result_lines(result))]


def exported_accuracy(file: Path, weights: Path, report: Report) -> ExportedAccuracy | None:
    """Evaluate an ONNX file on one view of each test video of the project that `weights` are of.

    None if they are not the model of a finished project.
    """
    result = project_result(weights)
    if result is None:
        return None
    recipe = load_recipe(weights.parent / RECIPE_FILE)
    views, exported = recipe.eval.clips * recipe.eval.crops, None
    if recipe.data.test is not None:
        report(heading("accuracy of the file on one view of each test video"))
        one_view = replace(recipe, eval=replace(recipe.eval, clips=1, crops=1))
        runtime = Runtime(torch.device("cpu"), "fp32")
        exported = evaluate(one_view, file, runtime, report=report, files=EvaluationFiles())[result.metric]
    return ExportedAccuracy(
        metric=result.metric,
        trained=result.value,
        trained_views=views,
        exported=exported,
        videos=result.videos,
    )
