import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from everest.errors import RecipeError
from everest.system.compute import one_thread
from everest.system.events import ignore_event
from everest.tokenizer.cache import INDEX
from everest.video.reader import read_frames, video_info
from everest_demo import event_pairs
from everest_demo.event_pairs import event_set
from everest_demo.lvmae import clips_of, tokens_of
from everest_demo.motions import CLASSES, DEMO_SET, NUM_FRAMES, render_clips
from everest_demo.rendering import SIZE
from everest_demo.steps import DemoSteps, clear_demo, demo_folder

SMALL = replace(DEMO_SET, pretrain=16, train_per_class=1, test_per_class=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    SMALL.write(root, seed=3)
    return root


def _lines(path: Path) -> list[list[str]]:
    return [line.split(" ") for line in path.read_text().splitlines()]


def _clips(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    classes = np.arange(count) % len(CLASSES)
    return render_clips(classes, np.random.default_rng(seed)), classes


def test_same_seed_gives_same_clips_and_lists(root, tmp_path):
    assert np.array_equal(_clips(40, seed=0)[0], _clips(40, seed=0)[0])
    assert not np.array_equal(_clips(8, seed=0)[0], _clips(8, seed=1)[0])
    SMALL.write(tmp_path, seed=3)
    for name in ("pretrain.csv", "train.csv", "test.csv", "classes.txt"):
        assert (root / name).read_text() == (tmp_path / name).read_text()


def test_no_clip_is_in_two_lists_and_labels_are_balanced_and_known(root):
    lines = {split: _lines(root / f"{split}.csv") for split in ("pretrain", "train", "test")}
    names = [name for rows in lines.values() for name, _ in rows]
    assert len(names) == len(set(names)) == 46
    assert len({(root / name).read_bytes() for name in names}) == 46
    assert tuple((root / "classes.txt").read_text().split()) == CLASSES
    for split, per_class in (("train", 1), ("test", 2)):
        assert sorted(label for _, label in lines[split]) == sorted(CLASSES * per_class)
    assert {label for _, label in lines["pretrain"]} == {"0"}  # does not reveal the class


def test_files_decode_to_what_was_rendered(root):
    name, _ = _lines(root / "train.csv")[0]
    info = video_info(str(root / name))
    assert (info.num_frames, info.height, info.width) == (NUM_FRAMES, SIZE, SIZE)
    assert read_frames(str(root / name), list(range(NUM_FRAMES))).shape == (12, 32, 32, 3)


@pytest.mark.parametrize("direction", ["right", "down", "left", "up"])
def test_shape_moves_where_its_class_says(direction):
    """Changed pixels fit the next frame better if they are moved with the class's motion than against it."""
    clips = render_clips(np.full(64, CLASSES.index(direction)), np.random.default_rng(0)).astype(np.float64)
    dx, dy = {"right": (2, 0), "down": (0, 2), "left": (-2, 0), "up": (0, -2)}[direction]

    def misfit(sign: int) -> float:
        moved = np.roll(clips[:, :-1], (sign * dy, sign * dx), axis=(2, 3))
        still = np.abs(clips[:, 1:] - clips[:, :-1]).max(axis=-1, keepdims=True) < 20
        return float(np.where(still, 0, np.abs(moved - clips[:, 1:])).sum())

    assert misfit(+1) < 0.7 * misfit(-1)


@pytest.mark.slow
def test_linear_probe_on_one_frame_is_at_chance():
    clips, classes = _clips(1600, seed=4)
    for frame in (0, NUM_FRAMES // 2, NUM_FRAMES - 1):
        x = clips[:, frame, ::2, ::2].reshape(len(clips), -1) / 255.0
        probe_ = RidgeClassifier(alpha=100.0).fit(x[:1200], classes[:1200])
        correct = int((probe_.predict(x[1200:]) == classes[1200:]).sum())
        # 400 clips at 1/10: 40 +- 6; four standard deviations.
        assert 40 - 24 < correct < 40 + 24, frame


def _changed(clips: np.ndarray) -> np.ndarray:
    """(n, F - 1) the mean change of pixels from frame to frame, without the drift of the texture."""
    change = np.abs(np.diff(clips.astype(np.float64), axis=1)).max(axis=-1)
    return np.where(change > 20, change, 0).mean(axis=(2, 3))


def test_the_halves_of_a_clip_distinguish_speeding_up_from_slowing_down():
    half = NUM_FRAMES // 2
    for name, still, moving in (("speeding-up", 0, 1), ("slowing-down", 1, 0)):
        clips = render_clips(np.full(64, CLASSES.index(name)), np.random.default_rng(0))
        change = _changed(clips)
        halves = change[:, : half - 1].mean(), change[:, half:].mean()
        assert halves[moving] > 10 * halves[still]


def test_events_come_in_the_order_of_their_class_and_far_apart():
    classes = np.arange(96) % len(event_pairs.CLASSES)
    clips = event_pairs.render_clips(classes, np.random.default_rng(0))
    change = _changed(clips)  # (n, 63)
    quiet = change[:, 16:46]
    assert quiet.max() < 0.2 * change.max(axis=1).min() + 0.5
    light = clips.mean(axis=(2, 3, 4))  # (n, F)
    for number, order in enumerate(event_pairs.ORDERS):
        if "fades" in order:
            mine = light[classes == number].mean(axis=0)
            early, late = mine[20] - mine[:18].min(), mine[20] - mine[46:].min()
            assert (early > late + 1, late > early + 1)[order.index("fades")], (order, early, late)


def test_the_readme_describes_the_set():
    readme = " ".join((Path(__file__).parents[3] / "README.md").read_text().split())
    labeled = DEMO_SET.train_per_class * len(CLASSES)
    assert f"fine-tunes on {labeled} labeled clips of rendered motions" in readme
    assert f"pre-training on {DEMO_SET.pretrain} unlabeled clips" in readme


FEW = ("tokenizer.epochs=1", "pretrain.epochs=2", "finetune.epochs=1", "train.workers=0")
FEW_CLIPS = replace(event_set(), pretrain=16, train_per_class=3, test_per_class=1)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an LVMAE demo after all its stages."""
    folder = tmp_path_factory.mktemp("demo")
    steps = DemoSteps(folder=folder, emit=ignore_event)
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
        busy = pytest.raises(RecipeError, match="another process writes there now")
        with busy, demo_folder(demo, overwrite=True):
            pass
    assert {path for path in demo.rglob("*") if path.is_file()} == set(mine)


def test_a_folder_that_holds_no_demo_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(RecipeError, match="holds no demo"):
        clear_demo(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "kept"
