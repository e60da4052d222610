import json
from dataclasses import replace
from pathlib import Path

import pytest

from everest.errors import RecipeError
from everest.system.compute import one_thread
from everest.system.events import silent
from everest.tokenizer.cache import INDEX
from everest_demo.events import event_set
from everest_demo.lvmae import clips_of, tokens_of
from everest_demo.steps import DemoSteps, clear_demo, demo_folder

FEW = ("tokenizer.epochs=1", "pretrain.epochs=2", "finetune.epochs=1", "train.workers=0")
FEW_CLIPS = replace(event_set(), pretrain=16, train_per_class=3, test_per_class=1)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an LVMAE demo after all its stages."""
    folder = tmp_path_factory.mktemp("demo")
    steps = DemoSteps(folder=folder, report=silent)
    with one_thread():
        steps.render(FEW_CLIPS)
        tokenizer = steps.tokenizer("tokenizer", steps.recipe("lvmae-demo", *FEW))
        recipe = steps.recipe("lvmae-demo", *FEW, *tokens_of(tokenizer, folder / "tokens"))
        steps.tokens(recipe, variants=1)
        encoder = steps.pretrain("pretrain", recipe)
        short = steps.recipe("lvmae-demo", *FEW, *clips_of(16))
        top1 = steps.finetune("finetune-16", short, init=encoder)
    steps.write_report(f"{top1} %\n")
    return folder


def test_every_stage_writes_its_run_and_its_seconds(demo: Path):
    stages = ["rendering", "training a tok", "preparing tok", "pre-training", "fine-tuning", "testing"]
    rows = [row for row in (demo / "report.md").read_text().splitlines() if row.startswith("| ")][1:]
    assert [any(row.startswith(f"| {stage}") for row in rows) for stage in stages] == [True] * len(stages)
    runs = ("tokenizer", "pretrain", "finetune-16")
    assert json.loads((demo / "tokens" / INDEX).read_text())["variants"] == 1  # prepared once
    assert len((demo / "pretrain" / "metrics.jsonl").read_text().splitlines()) == 2  # a step an epoch
    assert all((demo / run / "model.safetensors").is_file() for run in runs)


def test_an_earlier_demo_is_removed_and_nothing_else(demo: Path):
    mine = [demo / "mine" / "recipe.yaml", demo / "plot.png"]
    mine[0].parent.mkdir()
    for path in mine:
        path.write_text("kept")
    with pytest.raises(RecipeError, match="--overwrite"):
        clear_demo(demo, overwrite=False)
    (demo / "report.md").unlink()  # as if it had been killed before its end
    with demo_folder(demo, overwrite=False):
        assert not (demo / "pretrain").exists()
        with (
            pytest.raises(RecipeError, match="another process writes there now"),
            demo_folder(demo, overwrite=True),
        ):
            pass
    assert {path for path in demo.rglob("*") if path.is_file()} == set(mine)


def test_a_folder_that_holds_no_demo_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(RecipeError, match="holds no demo"):
        clear_demo(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "kept"
