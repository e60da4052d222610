"""EVEREST's whole path on rendered videos: pre-train, fine-tune, evaluate, and the same from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from everest.checkpoints.describe import load_model
from everest.config.settings import Recipe
from everest.data.recipe_clips import pretrain_dataset
from everest.figures.masks import apply_strategies
from everest.figures.rows import draw_rows, make_figure_rows
from everest.models.mae import MaskedAutoencoder
from everest.system.compute import one_thread
from everest.system.events import Emit
from everest_demo.motions import CLASSES, DEMO_SET
from everest_demo.steps import PICTURE, RUNS, DemoSteps


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Top-1 accuracies on the test videos, in percent."""

    pretrained: float
    from_scratch: float
    chance: float


@one_thread()
def run_demo(folder: Path, *, emit: Emit) -> DemoResult:
    """Render the set, run every stage with the `demo` recipe, write the report.

    `folder` then holds the videos, a run folder per stage, `report.md` and its image.
    """
    steps = DemoSteps(folder=folder, emit=emit)
    steps.render(DEMO_SET)
    recipe = steps.recipe("demo")
    pretraining, pretrained, from_scratch = RUNS
    encoder = steps.pretrain(pretraining, recipe)
    result = DemoResult(
        pretrained=steps.finetune(pretrained, recipe, init=encoder),
        from_scratch=steps.finetune(from_scratch, recipe, init=None),
        chance=100 / len(CLASSES),
    )
    model = load_model(encoder)
    assert isinstance(model, MaskedAutoencoder)
    clip = pretrain_dataset(recipe).read((0, 0))
    strategy = model.strategy
    masks = apply_strategies(
        clip.frames[0], [(strategy.strategy, strategy)], embed=model.embedding, model=model, seed=0
    )
    title = "predicted tokens are orange, omitted tokens gray"
    draw_rows(folder / PICTURE, make_figure_rows(masks), num_time_indices=masks[0].grid.t, title=title)
    steps.write_report(_text(recipe, result))
    return result


def _text(recipe: Recipe, result: DemoResult) -> str:
    return f"""# everest demo

| model | top-1 |
|---|---|
| pre-trained on unlabeled clips, then fine-tuned | {result.pretrained:.1f} % |
| the same fine-tuning from scratch | {result.from_scratch:.1f} % |
| chance | {result.chance:.1f} % |

Task: {len(CLASSES)} classes that differ by motion only ({", ".join(CLASSES)}),
with few labeled clips each. In this case pre-training pays: with many labels, the model from scratch
reaches the same accuracy here. Recipe: `everest recipes show demo`; seed {recipe.train.seed}.

![visible, predicted and reconstructed tokens]({PICTURE})

Omitted tokens are gray. The encoder does not see the orange tokens; the decoder predicts them, as in the
third row. The run folders next to this report can be used by other commands, for example
`everest eval --checkpoint finetune-pretrained`.
"""
