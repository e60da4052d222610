import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import called, json_of, refused, run

from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.config.stage_settings import PixelPretrainSettings
from everest.engine.plan import plan_stage
from everest.lists.reading import read_samples
from everest.lists.sample import ListSize
from everest.methods.ranked import Drawn
from everest.probes.collapse import probed_steps
from everest.suggest.data_facts import DataFacts, ProbeList
from everest.suggest.data_section import data_section
from everest.suggest.rules import DEVICES, choose_every, choose_values
from everest.suggest.suggestion import recipe_text, this_device
from everest.video.writer import write_video

SUGGEST = "recipes suggest"
DRY_RUN = "finetune --init none --dry-run --gpus cpu --set train.workers=0"


def videos_of(number: int) -> ListSize:
    return ListSize(samples=number, videos=number, groups=number)


def facts_of(videos: int, **others: Any) -> DataFacts:
    """Facts of small videos of five classes."""
    probed = ProbeList(name=None, videos=min(videos, 256), held_out=0)
    usual = {"classes": 5, "frames": 60, "height": 240, "width": 320, "probed": probed}
    return DataFacts(**{"train": videos_of(videos), **usual, **others})


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The file of a suggested recipe."""
    return tmp_path / "mine.yaml"


def suggested(mine: Path, data: Path, *options: object) -> Recipe:
    """The recipe that the command writes."""
    called(SUGGEST, data, "-q", "-o", mine, *options)
    return load_recipe(mine)


def chosen(facts: DataFacts, device: str = "cpu", **options: Any) -> dict[str, Any]:
    """The suggested values by key."""
    return {choice.key: choice.value for choice in choose_values(facts, device, **options)}


@given(
    videos=st.integers(1, 10**6),
    classes=st.integers(2, 1000),
    frames=st.integers(1, 10**5),
    height=st.integers(16, 4000),
    width=st.integers(16, 4000),
    device=st.sampled_from(sorted(DEVICES)),
)
def test_every_suggestion_is_a_valid_recipe(tmp_path_factory, videos, classes, frames, height, width, device):
    facts = facts_of(videos, classes=classes, frames=frames, height=height, width=width)
    choices = choose_values(facts, device)
    text = recipe_text(choices, {"train": "train.csv"}, base=DEVICES[device].base, facts=facts)
    path = tmp_path_factory.mktemp("suggest") / "mine.yaml"
    path.write_text(text)
    recipe = load_recipe(path)
    tubelet, size = recipe.model.tubelet, recipe.data.frame_size
    assert all(side % unit == 0 for side, unit in zip(size, tubelet[1:], strict=True))
    assert all(
        side <= max(most + unit / 2, 4 * unit)
        for side, most, unit in zip(size, (height, width), tubelet[1:], strict=True)
    )
    assert recipe.finetune.epochs is None
    assert 1 <= (recipe.finetune.steps or 0) <= 30_000
    for choice in choices:
        assert choice.reason in text


def test_steps_grow_with_the_videos_up_to_a_limit():
    def steps(videos: int, **most: int) -> int:
        return chosen(facts_of(videos), most_steps=most)["finetune.steps"]

    assert steps(50, finetune=700) == 700 < steps(50) < steps(500) < steps(50_000)
    assert steps(500, finetune=10_000) == steps(500)


def test_the_command_writes_a_recipe_that_runs_alone(tmp_path: Path, clip_files: Path, mine: Path):
    data = shutil.copytree(clip_files, tmp_path / "data")
    recipe = suggested(mine, data, "--val", "train.csv", "--hours", "0.01")
    assert (recipe.data.root, recipe.data.train, recipe.data.val) == (str(data), "train.csv", "train.csv")
    assert "base: small\n" in mine.read_text()
    called(DRY_RUN, "--recipe", mine, "-o", tmp_path / "run")
    message = refused(SUGGEST, data, "-o", mine, code=2)
    assert "exists; choose another name, or use --overwrite" in message


def test_bad_input_is_named_and_leaves_nothing(tmp_path, clip_files, class_folders, mine):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sheet.csv").write_text("path,class\n")
    (tmp_path / "one.csv").write_text(f"{clip_files / 'clip0.mp4'}\n")
    (tmp_path / "lettered").mkdir()
    (tmp_path / "lettered" / "letters_train.csv").write_text("path,label\nrun/0.mp4,run\n")
    before = sorted(tmp_path.iterdir())
    for source, options, code, problem in (
        (clip_files, ["--train", "none.csv"], 4, "none.csv"),
        (clip_files, ["--device", "16GB"], 2, "'16GB'"),
        (clip_files, ["--hours", 0], 2, "0.01"),
        (class_folders, ["--device", "foo"], 2, "'foo'"),
        (class_folders, ["--hours", "inf"], 2, "'--hours'"),
        (class_folders, ["--group", "("], 2, "--group"),
        (class_folders, ["--pretrain", tmp_path / "one.csv"], 2, "one.csv: one video; pre-training compares"),
        (tmp_path / "lettered", [], 4, "--train letters_train.csv reads the list that is there"),
        (tmp_path / "empty", [], 4, "no train.csv; `everest prepare split LIST` divides a list or a sheet"),
        (tmp_path / "none", [], 4, "no such folder"),
        (tmp_path / "sheet.csv", [], 4, "name the folder of the videos, and a list in it with --train"),
    ):
        assert problem in refused(SUGGEST, source, *options, "-o", mine, code=code)
        assert sorted(tmp_path.iterdir()) == before


def in_class_folders(videos: Path, clip_files: Path, count: int) -> Path:
    """Write so many videos to folders of two classes."""
    for number in range(count):
        folder = videos / ("run", "walk")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip_files / f"clip{number % 4}.mp4", folder / f"{number}.mp4")
    return videos


@pytest.fixture
def class_folders(tmp_path: Path, clip_files: Path) -> Path:
    return in_class_folders(tmp_path / "videos", clip_files, 10)


def test_class_folders_are_split_next_to_the_recipe(tmp_path: Path, class_folders: Path, mine: Path):
    before = sorted(class_folders.rglob("*"))
    shown = called(SUGGEST, class_folders, "-o", mine)
    assert "everest finetune --recipe" in shown.stderr
    data = load_recipe(mine).data
    lists = [tmp_path / "mine-lists" / f"{name}.csv" for name in ("train", "val", "test")]
    assert [data.train, data.val, data.test] == list(map(str, lists))
    videos = [sample.path for path in lists for sample in read_samples(path, root=class_folders).samples]
    assert sorted(videos) == sorted(map(str, class_folders.rglob("*.mp4")))
    assert sorted(class_folders.rglob("*")) == before
    message = refused(SUGGEST, class_folders, "-o", class_folders / "in.yaml", code=2)
    assert "its lists would look like a class" in message
    assert "mine.yaml: exists" in refused(SUGGEST, class_folders, "-o", mine, code=2)
    for number in range(2, 10):  # lists of an earlier recipe are removed
        (class_folders / ("run", "walk")[number % 2] / f"{number}.mp4").unlink()
    assert suggested(mine, class_folders, "--overwrite").data.test is None
    assert not lists[2].exists()


def test_both_stages_read_the_lists_of_class_folders_with_probes(tmp_path: Path, clip_files: Path):
    mine = tmp_path / "mine.yaml"
    videos = in_class_folders(tmp_path / "videos", clip_files, 50)  # 70 % of them are enough to probe
    recipe = suggested(mine, videos, "--device", "cpu", "-q")
    assert recipe.pretrain.probe.list == str(tmp_path / "mine-lists" / "train.csv")
    options = ["--recipe", mine, "--dry-run", "--gpus", "cpu", "--set", "train.workers=0"]
    called("pretrain", *options, "-o", tmp_path / "encoder")
    called("finetune", *options, "--init", "none", "-o", tmp_path / "classifier")


@pytest.mark.parametrize("names", [("Train", "Validation", "Test"), ("training", "val", "testing", "other")])
def test_folders_of_splits_are_the_lists(tmp_path: Path, clip_files: Path, names: tuple[str, ...]):
    mine = tmp_path / "mine.yaml"
    for name in names:
        for label, clip in (("run", "clip0"), ("walk", "clip1")):
            (tmp_path / "videos" / name / label).mkdir(parents=True)
            shutil.copy(clip_files / f"{clip}.mp4", tmp_path / "videos" / name / label)
    data = suggested(mine, tmp_path / "videos", "--device", "cpu", "-q").data
    assert (data.train, data.val, data.test) == names[:3]
    assert "# Training: 2 videos, 2 classes." in mine.read_text()
    called(DRY_RUN, "--recipe", mine, "-o", tmp_path / "run")
    recipe = suggested(tmp_path / "all.yaml", tmp_path / "videos", "--unlabeled", "-q")
    assert recipe.data.train == names[0]


def test_the_other_lists_and_the_class_names_of_a_training_list_have_its_prefix(tmp_path: Path):
    def found(train: str) -> tuple[str | None, ...]:
        section = data_section(str(tmp_path), train=train)
        return section["val"], section["test"], section.get("classes")

    (tmp_path / "lists").mkdir()
    for name in ("train", "val", "test", "a_train", "a_test", "b_train", "all", "lists/train", "lists/test"):
        (tmp_path / f"{name}.csv").write_text("0.mp4,run\n")
    for name in ("classes", "a_classes"):
        (tmp_path / f"{name}.txt").write_text("run\n")
    assert found("train.csv") == ("val.csv", "test.csv", "classes.txt")
    assert found("a_train.csv") == (None, "a_test.csv", "a_classes.txt")
    assert found("b_train.csv") == (None, None, None)
    assert found("all.csv") == (None, None, None)  # whose labels may be of another task
    assert found("lists/train.csv") == (None, "lists/test.csv", None)
    assert found(str(tmp_path / "a_train.csv"))[:2] == (None, str(tmp_path / "a_test.csv"))
    (tmp_path / "all_classes.txt").write_text("3\n7\n")  # as `prepare windows` writes for numbers
    assert found("all.csv")[2] == "all_classes.txt"


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_typo_in_a_class_of_a_list_is_refused(tmp_path: Path, clip_files: Path, mine: Path, name: str):
    data = shutil.copytree(clip_files, tmp_path / "data")
    (data / "classes.txt").write_text("run\nwalk\n")
    right = "".join(f"clip{i}.mp4,{('run', 'walk')[i % 2]}\n" for i in range(4))
    for each in ("train", "val", "test"):
        (data / f"{each}.csv").write_text(right.replace("clip3.mp4,walk", "clip3.mp4,wolk", each == name))
    message = refused(SUGGEST, data, "-o", mine, code=4)
    assert f"{name}.csv:4: unknown class 'wolk'; did you mean 'walk'?" in message
    assert not mine.exists()


def test_the_steps_and_the_time_of_each_stage_are_printed(tmp_path: Path, class_folders: Path, mine: Path):
    (unlabeled := tmp_path / "unlabeled").mkdir()
    for number in range(2):
        shutil.copy(class_folders / "run" / "0.mp4", unlabeled / f"{number}.mp4")
    options = [SUGGEST, class_folders, "--device", "cpu", "-o", mine, "--overwrite"]
    lines = called(*options).stderr.splitlines()
    measured = r"finetune: 600 steps of 16 clips, about \d+ (s|min) at \d+ clips/s \(measured\)"
    assert any(re.fullmatch(measured, line) for line in lines)
    assert not any(line.startswith("pretrain: ") for line in lines)
    document = json_of(*options, "--pretrain", unlabeled)
    assert [stage["stage"] for stage in document["stages"]] == ["pretrain", "finetune"]
    stage = document["stages"][1]
    assert (stage["steps"], stage["batch_size"]) == (600, 16)
    assert stage["seconds"] == round(600 * 16 / stage["clips_per_second"])
    assert document["recipe"] == str(mine)
    assert [command.split()[1] for command in document["next"]] == ["pretrain", "finetune", "eval"]
    document = json_of(SUGGEST, class_folders, "--unlabeled", "-o", tmp_path / "p.yaml")
    assert [stage["stage"] for stage in document["stages"]] == ["pretrain"]


def test_the_time_on_another_machine_is_not_estimated(class_folders: Path, mine: Path):
    other = next(name for name in DEVICES if name not in ("cpu", this_device()))
    options = [SUGGEST, class_folders, "--device", other, "-o", mine]
    shown = called(*options).stderr
    assert f"finetune: 600 steps of {DEVICES[other].batch} clips; their time was not measured" in shown
    message = refused(*options, "--overwrite", "--hours", "1", code=2)
    assert f"--hours: cannot measure the speed of --device {other}" in message


def test_pre_training_compares_views_in_batches_of_three_times_the_clips():
    values = chosen(facts_of(60), purpose="pretrain")
    settings = [f"{key}={json.dumps(value)}" for key, value in values.items() if key != "pretrain.probe"]
    stage = load_recipe("small", overrides=settings).pretrain
    assert (stage.objective, stage.views.loss, stage.camera_motion) == ("views", "contrast", 1.0)
    assert stage.selection == Drawn(keep_ratio=0.25, visible_ratio=None, uniform=1.0)
    assert stage.batch_size == 3 * values["finetune.batch_size"] == 48
    assert stage.base_lr * stage.batch_size / 256 == pytest.approx(1e-3, rel=1e-4)


MILD = {"finetune.layer_decay": 1.0, "finetune.rand_augment": None, "finetune.erasing": 0.0}


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_a_model_from_scratch_is_trained_otherwise_than_an_encoder(device: str):
    """With one rate and, of few videos, mild augmentation; with an encoder, all see differences."""
    for purpose, videos, special, sees in (
        ("scratch", 100, MILD, "differences"),
        ("scratch", 101, {"finetune.layer_decay": 1.0}, "differences"),
        ("scratch", 6000, {"finetune.layer_decay": 1.0}, None),
        *(
            (purpose, videos, {}, "differences")
            for purpose in ("finetune", "pretrain")
            for videos in (100, 6000)
        ),
    ):
        values = chosen(facts_of(videos), device, purpose=purpose)
        assert {key: values[key] for key in MILD if key in values} == special
        assert values.get("model.input") == sees
        kept = (
            0.6 if device != "cpu" else 0.15 if purpose == "scratch" else 0.5
        )  # at least half of the tokens
        assert values["finetune.selection"]["keep_ratio"] == kept
    assert load_recipe("small-views").finetune.selection.keep_ratio == 0.5


def test_unlabeled_videos_get_a_recipe_for_pre_training(tmp_path: Path, class_folders: Path, mine: Path):
    shown = called(SUGGEST, class_folders, "--unlabeled", "-o", mine)
    assert f"everest pretrain --recipe {mine}" in shown.stderr
    assert "Training: 10 videos, no labels." in mine.read_text()
    called("pretrain --dry-run --gpus cpu", "--recipe", mine, "-o", tmp_path / "run")


@pytest.mark.parametrize("as_list", [False, True])
def test_a_recipe_for_both_stages_counts_the_videos_of_each(tmp_path, class_folders, monkeypatch, as_list):
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        folder = tmp_path / "unlabeled" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(class_folders / "run" / "0.mp4", folder / f"{number}.mp4")
    source = "unlabeled"
    if as_list:
        source = "unlabeled.csv"
        lines = [f"{path}\n" for path in sorted((tmp_path / "unlabeled").rglob("*.mp4"))]
        (tmp_path / source).write_text("".join(lines))
    options = ["--pretrain", source, "--device", "cpu", "-o", "both.yaml"]
    shown = called(SUGGEST, class_folders, *options)
    assert "everest pretrain --recipe both.yaml --output runs/both-pretrain\n" in shown.stderr
    assert "--init runs/both-pretrain --output runs/both\n" in shown.stderr
    text = (tmp_path / "both.yaml").read_text()
    assert "# Training: 6 videos, 2 classes. Pre-training: 40 videos." in text
    recipe = load_recipe(tmp_path / "both.yaml")
    assert recipe.data.pretrain == str(tmp_path / source)
    assert (recipe.pretrain.steps, recipe.finetune.steps) == (round(120 * 40**0.5), 600)
    base = load_recipe("small").finetune
    assert (recipe.model.input, recipe.finetune.layer_decay) == ("differences", base.layer_decay)
    command = "pretrain --recipe both.yaml --dry-run --gpus cpu --set train.workers=0 -o run"
    assert "40" in run(command)


@pytest.mark.parametrize("name", ["run", "videos/run", "videos", "linked"])
def test_a_class_folder_is_not_for_pre_training(tmp_path, class_folders, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(class_folders / "run")
    message = refused(SUGGEST, class_folders, "--pretrain", name, "-o", "both.yaml", code=2)
    assert f" of {class_folders}, which will be split; name another folder" in message
    message = refused(SUGGEST, class_folders, "--pretrain", "none", "-o", "both.yaml", code=4)
    assert "--pretrain none: no such list" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked", "videos"]


def test_videos_for_pre_training_are_read_and_compared_with_the_tests(tmp_path: Path, clip_files: Path):
    mine = tmp_path / "mine.yaml"
    data = shutil.copytree(clip_files, tmp_path / "data")
    (data / "test.csv").write_text("clip0.mp4 0\nclip1.mp4 1\n")
    shown = called(SUGGEST, data, "--pretrain", data, "-o", mine)
    assert f"warning: --pretrain {data} has 2 videos of the validation or test list" in shown.stderr
    (tmp_path / "short").mkdir()
    frames = torch.zeros(16, 32, 32, 3, dtype=torch.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "short" / name, frames, fps=16)
    options = [SUGGEST, data, "--overwrite", "-q", "-o", mine]
    shown = called(*options, "--pretrain", tmp_path / "short")
    assert "of the validation" not in shown.stderr
    recipe = load_recipe(mine)
    assert (recipe.pretrain.stride, recipe.finetune.stride) == (1, 1)  # of 16 frames, and of 32
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "short" / name).write_bytes(b"")
    before = mine.read_text()
    message = refused(*options, "--pretrain", tmp_path / "short", code=4)
    assert "none of the videos can be read; the first: " in message
    assert mine.read_text() == before
    for option in ("--pretrain", "--train"):
        assert f"{option}: empty; name a list or a folder" in refused(*options, option, "", code=2)


@pytest.mark.parametrize("name", ["test.csv", "letters_test.csv", "train.csv"])
def test_unlabeled_videos_are_compared_with_the_tests(tmp_path: Path, clip_files: Path, name: str):
    mine = tmp_path / "mine.yaml"
    data = shutil.copytree(clip_files, tmp_path / "data")
    if name != "train.csv":
        (data / "train.csv").unlink()
    (data / name).write_text("clip0.mp4 0\nclip1.mp4 1\n")
    shown = called(SUGGEST, data, "--unlabeled", "-o", mine).stderr
    copies = f"2 videos of the validation or test list, such as {data}/clip0.mp4"
    assert (f"warning: --unlabeled {data} has {copies}" in shown) == (name != "train.csv")


def test_missing_lists_are_warned_about_and_lists_may_be_in_the_working_directory(
    tmp_path: Path, clip_files: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip_files / "train.csv", "mine.csv")
    shown = called(SUGGEST, clip_files, "--train", "mine.csv", "-o", "mine.yaml")
    assert "no val or test list" in shown.stderr
    assert "everest eval" not in shown.stderr
    assert load_recipe("mine.yaml").data.train == str(tmp_path / "mine.csv")


def labeled_list(folder: Path, clip_files: Path, labels: list[str]) -> Path:
    folder.mkdir()
    rows = [f"{clip_files}/clip{i % 4}.mp4,{label}\n" for i, label in enumerate(labels)]
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text("path,label\n" + "".join(rows))
    return folder


def test_numbers_get_a_recipe_for_regression_that_mixes_nothing(tmp_path: Path, clip_files: Path, mine: Path):
    data = labeled_list(tmp_path / "data", clip_files, [str(number / 4) for number in range(8)])
    shown = called(SUGGEST, data, "--device", "cpu", "-o", mine).stderr
    assert "labels are decimals, so they are read as numbers (regression)" in shown
    recipe = load_recipe(mine)
    stage = recipe.finetune
    assert (recipe.data.task, stage.mixup, stage.cutmix, stage.label_smoothing) == ("regression", 0, 0, 0)
    assert "# Training: 8 videos, numbers as labels." in mine.read_text()
    called(DRY_RUN, "--recipe", mine, "-o", tmp_path / "run")


def test_rare_classes_get_a_sampler(tmp_path: Path, clip_files: Path, mine: Path):
    data = labeled_list(tmp_path / "data", clip_files, ["a"] * 11 + ["a|b", "c", "c"])
    recipe = suggested(mine, data, "--device", "cpu")
    assert (recipe.data.task, recipe.finetune.sampler) == ("multi-label", "sqrt")
    assert "sampler: sqrt # the most frequent class has 12 times the videos" in mine.read_text()
    called(DRY_RUN, "--recipe", mine, "-o", tmp_path / "run")
    (balanced := tmp_path / "balanced").mkdir()
    for number in range(11):
        shutil.copy(clip_files / "clip0.mp4", balanced / f"{number}.mp4")
    text = "".join(f"{number}.mp4,{'b' if number == 10 else 'a'}\n" for number in range(11))
    (balanced / "train.csv").write_text(f"path,label\n{text}")
    recipe = suggested(tmp_path / "b.yaml", balanced, "--device", "cpu")
    assert (recipe.data.task, recipe.finetune.sampler) == ("single-label", "shuffle")


def test_clips_of_left_and_right_are_not_mirrored(tmp_path: Path, clip_files: Path, mine: Path):
    sides = labeled_list(tmp_path / "sides", clip_files, ["turn_left", "turn_right"] * 3)
    assert suggested(mine, sides, "--device", "cpu").data.flip is False
    assert "flip: false # class names have left, right; a mirrored" in mine.read_text()
    others = labeled_list(tmp_path / "others", clip_files, ["run", "walk"] * 3)
    assert suggested(tmp_path / "others.yaml", others, "--device", "cpu").data.flip is True


def test_the_task_of_a_suggested_recipe_can_be_given(tmp_path: Path, clip_files: Path, mine: Path):
    data = labeled_list(tmp_path / "data", clip_files, ["1", "5", "3", "2"])
    (data / "classes.txt").write_text("left over\nfrom classes\n")
    assert suggested(mine, data, "--task", "regression").data.task == "regression"
    again = [SUGGEST, data, "--task", "regression", "-o", mine, "--overwrite"]
    assert "--task: has no effect with --unlabeled" in refused(*again, "--unlabeled", code=2)
    (data / "train.csv").write_text(f"{clip_files}/clip0.mp4,x\n{clip_files}/clip1.mp4,1\n")
    assert "train.csv:1: label 'x' is not a number" in refused(*again, code=4)


@given(
    videos=st.integers(30, 10**5),
    held_out=st.integers(0, 64),
    steps=st.integers(1, 30_000),
    batch=st.sampled_from([16, 64, 128]),
    training=st.integers(1, 10**5),
)
def test_suggested_probes_are_few_and_read_few_videos(videos, held_out, steps, batch, training):
    probed = ProbeList(name="val.csv", videos=videos, held_out=held_out)
    found = choose_every(probed, steps=steps, batch=batch, videos=training)
    if found is None:
        assert 3 * 3.2 * (videos + held_out) >= 0.05 * steps * batch
        return
    every, share = found
    stage = PixelPretrainSettings(steps=steps, batch_size=batch)
    plan = plan_stage(stage, num_videos=training, processes=1, largest_micro_batch=batch)
    probes = probed_steps(plan.steps, every=every, checkpoint_steps=plan.checkpoint_steps)
    assert len(probes) <= 20
    assert share == pytest.approx(len(probes) * 3.2 * (videos + held_out) / (steps * batch))
    assert share < 0.05
