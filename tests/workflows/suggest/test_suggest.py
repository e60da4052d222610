import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import called, contents, json_of, refused

from everest.checkpoints.describe import read_weight_settings
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.lists.reading import read_samples
from everest.lists.sample import ListSize
from everest.methods.selection import Sampled
from everest.models.classifier import Classifier
from everest.models.cost import total_macs
from everest.models.spec import classifier_spec
from everest.system.compute import NetworkTime
from everest.video.writer import write_video
from everest_workflows.suggest import rules
from everest_workflows.suggest.data_section import make_data_section
from everest_workflows.suggest.model_size import MODEL_SIZES, fit_latency, measure_network_time
from everest_workflows.suggest.rules import DEVICE_VALUES as DEVICES
from everest_workflows.suggest.rules import DataStats, choose_values, find_device
from everest_workflows.suggest.suggestion import Suggestion, format_recipe, suggest_recipe

OTHER = next(name for name in DEVICES if name not in ("cpu", find_device()))
SUGGEST, MINE = "recipes suggest -o mine.yaml", Path("mine.yaml")
DRY_RUN = "--recipe mine.yaml --dry-run --gpus cpu --set train.workers=0 -o runs/dry"
choices_of = partial(choose_values, purpose="scratch", max_steps={})
COUNT, SIDE = st.integers(1, 10**5), st.integers(16, 4000)


def facts_of(videos: int, classes=5, frames=60, height=240, width=320) -> DataStats:
    train = ListSize(num_samples=videos, num_videos=videos, num_groups=videos)
    return DataStats(train=train, classes=classes, frames=frames, height=height, width=width)


def chosen(stats: DataStats, device: str = "cpu", **options: Any) -> dict[str, Any]:
    """The suggested values by key."""
    return {choice.key: choice.value for choice in choices_of(stats, device, **options)}


@given(stats=st.builds(facts_of, COUNT, COUNT, COUNT, SIDE, SIDE), device=st.sampled_from(sorted(DEVICES)))
def test_every_suggestion_is_a_valid_recipe(tmp_path_factory, stats: DataStats, device: str):
    choices = choices_of(stats, device)
    path = tmp_path_factory.mktemp("suggest") / "mine.yaml"
    path.write_text(
        format_recipe(choices, {"train": "train.csv"}, base=DEVICES[device].base, stats=stats, overridden={})
    )
    recipe = load_recipe(path)
    sides = zip(recipe.data.frame_size, recipe.model.tubelet[1:], (stats.height, stats.width), strict=True)
    for side, unit, most in sides:
        assert side % unit == 0
        assert side <= max(most, 4 * unit)
    assert recipe.finetune.epochs is None
    assert 1 <= (recipe.finetune.steps or 0) <= 30_000
    assert all(choice.reason in path.read_text() for choice in choices)


def test_steps_grow_with_the_videos_up_to_a_limit():
    def steps(videos: int, **most: int) -> int:
        return chosen(facts_of(videos), max_steps=most)["finetune.steps"]

    assert steps(50, finetune=700) == 700 < steps(50) < steps(500) < steps(50_000)
    assert steps(500, finetune=10_000) == steps(500)
    for videos, reason in ((24, "the fewest that"), (25, "120 x sqrt(25 "), (70_000, "the most that are ")):
        reasons = {choice.key: choice.reason for choice in choices_of(facts_of(videos), "cpu")}
        assert reasons["finetune.steps"].startswith(reason)


def test_pre_training_compares_views_in_batches_of_three_times_the_clips():
    values = chosen(facts_of(60), purpose="pretrain")
    settings = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    section = load_recipe("small", overrides=settings).pretrain
    assert (section.objective, section.camera_motion) == ("views", 1.0)
    assert section.selection == Sampled(keep_ratio=0.25, visible_ratio=None, uniform=1.0)
    assert section.batch_size == 3 * values["finetune.batch_size"] == 48
    assert section.base_lr * section.batch_size / 256 == pytest.approx(1e-3, rel=1e-4)


def suggested(videos: int, device: str, purpose: Any = "pretrain", **options: Any) -> Suggestion:
    section = {"root": "/data", "train": "train.csv"}
    file = Path("mine.yaml")
    fixed = {"section": section, "output": file, "overrides": (), "purpose": purpose}
    return Suggestion(stats=facts_of(videos, frames=250), device=device, **fixed, **options)


@pytest.mark.parametrize(("device", "backbone"), [("8GB", "vit-s"), ("24GB", "vit-s"), ("80GB", "vit-b")])
@pytest.mark.parametrize(("videos", "epochs"), [(100_000, 480), (240_000, 200), (300_000, 160), (10**8, 1)])
def test_many_videos_and_a_gpu_get_the_pre_training_of_the_paper(device, backbone, videos, epochs):
    suggestion = suggested(videos, device)
    k400 = load_recipe("k400", overrides=[f"model.backbone={backbone}"])
    scheduled = {"epochs": epochs, "warmup_epochs": round(epochs / 5)}
    assert suggestion.recipe.pretrain == replace(k400.pretrain, **scheduled)
    assert (suggestion.recipe.model, suggestion.recipe.finetune) == (k400.model, k400.finetune)
    assert suggestion.recipe.data.num_classes is None
    stated = re.findall(
        r"^  (\w+):.* # (Table|Section|our choice|as|a fifth|EVEREST|fits)", suggestion.text, re.MULTILINE
    )
    assert len(stated) == len(re.findall(r"^  \w+:", suggestion.text, re.MULTILINE)) - 2  # root, train


def test_the_recipe_of_the_paper_needs_many_videos_for_pre_training_and_a_gpu():
    assert "objective: views" in suggested(99_999, "80GB").text
    assert "objective: views" in suggested(100_000, "cpu").text
    assert suggested(100_000, "80GB", "finetune").recipe.pretrain.objective != "views"
    assert "objective: views" in suggested(100_000, "80GB", "scratch").text
    assert (
        "stride: 2 # Table 7" in replace(suggested(200_000, "80GB"), stats=facts_of(200_000, frames=50)).text
    )
    short = suggested(300_000, "80GB", max_steps={"pretrain": 900}).recipe.pretrain
    assert (short.epochs, short.steps, short.warmup_steps) == (None, 900, 180)


def test_many_unlabeled_and_few_labeled_videos_get_one_recipe_of_the_paper_for_both_stages():
    unlabeled = ListSize(num_samples=300_000, num_videos=300_000, num_groups=300_000)
    names = ("turn left", "turn right")
    stats = replace(
        facts_of(20_000, frames=250), pretrain=unlabeled, class_names=names, imbalance=20, task="single-label"
    )
    k400 = load_recipe("k400")
    both = replace(suggested(1, "80GB", "finetune"), stats=stats).recipe
    assert both.pretrain == replace(k400.pretrain, epochs=160, warmup_epochs=32)
    assert both.finetune == replace(k400.finetune, sampler="sqrt")
    assert (both.model, both.data.flip) == (k400.model, False)  # a mirrored clip shows the other class
    short = replace(suggested(1, "80GB", "finetune", max_steps={"finetune": 700}), stats=stats).recipe
    assert (short.finetune.epochs, short.finetune.steps, short.finetune.warmup_steps) == (None, 700, 100)


ONE_RATE = {"finetune.layer_decay": 1.0}
MILD = {**ONE_RATE, "finetune.rand_augment": None, "finetune.erasing": 0.0}


@pytest.mark.parametrize("device", sorted(DEVICES))
@pytest.mark.parametrize(
    ("purpose", "videos", "special", "sees", "kept_on_cpu"),
    [
        ("scratch", 100, MILD, "differences", 0.15),
        ("scratch", 101, ONE_RATE, "differences", 0.15),
        ("scratch", 6000, ONE_RATE, None, 0.15),
        ("finetune", 100, {}, "differences", 0.5),
        ("finetune", 6000, {}, "differences", 0.5),
        ("pretrain", 100, {}, "differences", 0.5),
        ("pretrain", 6000, {}, "differences", 0.5),
    ],
)
def test_an_encoder_is_fine_tuned_otherwise(device, purpose, videos, special, sees, kept_on_cpu):
    values = chosen(facts_of(videos), device, purpose=purpose)
    assert {key: values[key] for key in MILD if key in values} == special
    assert values.get("model.input") == sees
    assert values["finetune.selection"]["keep_ratio"] == (kept_on_cpu if device == "cpu" else 0.6)


@pytest.fixture
def here(tmp_path: Path, clip_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of videos: with lists in `data`, in class folders, in splits and without order."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clip_files, "plain")
    copy_videos("lettered", range(2))
    Path("lettered/a_test.csv").write_text("0.mp4 0\n1.mp4 1\n")
    copy_videos("data", range(14))
    copy_videos("videos/run", range(5))
    copy_videos("videos/walk", range(5, 10))
    copy_videos("unlabeled/a", range(20))
    copy_videos("unlabeled/b", range(20, 40))
    for name in ("Train", "Validation", "Test", "other"):
        copy_videos(f"splits/{name}/run", [0])
        copy_videos(f"splits/{name}/walk", [1])
    shutil.copytree("splits/Validation", "plain/validation")
    Path("plain/train.csv").write_text("clip0.mp4 run\nclip1.mp4 walk\n")
    for name in ("train", "val", "test", "a_train", "a_test", "b_train", "lists/train", "lists/test", "all"):
        write_list(name, ["run", "walk"] * 3)
    for name in ("all_val", "sval", "strain", "strain_test"):
        write_list(name, ["run", "walk"])
    write_list("sides", ["turn_left", "turn_right"])
    write_list("typo", ["run", "walk", "run", "wolk"])
    write_list("numbers", ["0.25", "1"] * 4)
    write_list("stars", ["1", "5", "3", "2"])
    write_list("balanced", ["a"] * 10 + ["b"])
    write_list("rare", ["a"] * 11 + ["a|b", "c", "c"])
    for name in ("classes", "a_classes", "typo_classes", "all_classes"):
        Path("data", f"{name}.txt").write_text("run\nwalk\n")
    paths = sorted(tmp_path.glob("unlabeled/*/*.mp4"))
    Path("unlabeled.csv").write_text("".join(f"{path}\n" for path in paths))
    return tmp_path


def copy_videos(folder: str, names: Iterable[int]) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy("plain/clip0.mp4", Path(folder, f"{name}.mp4"))


def write_list(name: str, labels: list[str]) -> None:
    """A list of videos in `data`, one for each label."""
    rows = [f"{number}.mp4,{label}\n" for number, label in enumerate(labels)]
    path = Path("data", f"{name}.csv")
    path.parent.mkdir(exist_ok=True)
    path.write_text("path,label\n" + "".join(rows))


def shown(words: str) -> str:
    """The notices of the command, and the recipe that it writes."""
    return called(f"{SUGGEST} --overwrite {words}").stderr + MINE.read_text()


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ("data --device cpu --hours 0.01", ["base: small\n", "root: {here}/data\n", "train: train.csv\n"]),
        ("data", ["val: val.csv\n", "test: test.csv\n", "classes: classes.txt\n"]),
        ("data --train a_train.csv", ["val: null\n", "test: a_test.csv\n", "classes: a_classes.txt\n"]),
        ("data --train b_train.csv", ["val: null\n", "test: null\n", "warning: no val or test list"]),
        ("data --train all.csv", ["val: all_val.csv\n", "test: null\n", "classes: all_classes.txt\n"]),
        ("data --train lists/train.csv", ["val: null\n", "test: lists/test.csv\n"]),
        ("data --train strain.csv", ["val: null\n", "test: strain_test.csv\n"]),
        ("splits --train {here}/splits/Train", ["val: Validation\n", "test: Test\n"]),
        ("data --train {here}/data/a_train.csv", ["val: null\n", "test: {here}/data/a_test.csv\n"]),
        ("videos --train unlabeled.csv --unlabeled", ["train: {here}/unlabeled.csv\n"]),
        ("data --train numbers.csv", ["labels are decimals, so they are read as numbers (regression)"]),
        ("data --train numbers.csv", ["# Training: 8 videos, numbers as labels.", "task: regression\n"]),
        ("data --train numbers.csv", ["mixup: 0.0 #", "cutmix: 0.0 #", "label_smoothing: 0.0 #"]),
        ("data --train stars.csv --task regression", ["task: regression\n"]),
        ("data --train rare.csv", ["task: multi-label\n", "sampler: sqrt # the most frequent class has 12 "]),
        ("data --train sides.csv", ["flip: false # class names have left, right; a mirrored"]),
        ("videos --unlabeled", ["Training: 10 videos, no labels.", "everest pretrain --recipe mine.yaml"]),
        ("videos", ["everest finetune --recipe mine.yaml", "train: {here}/mine-lists/train.csv\n"]),
        ("splits", ["train: Train\n", "val: Validation\n", "test: Test\n", "Training: 2 videos, 2 classes."]),
        ("splits --unlabeled", ["train: Train\n"]),
        ("plain", ["train: train.csv\n", "val: validation\n"]),
        ("videos --pretrain unlabeled", ["Training: 6 videos, 2 classes. Pre-training: 40 videos."]),
        ("videos --pretrain unlabeled", ["everest pretrain --recipe mine.yaml --output runs/mine-pretrain"]),
        ("videos --pretrain unlabeled", ["--init runs/mine-pretrain --output runs/mine\n"]),
        ("videos --pretrain unlabeled", ["clips of the videos are compared; ", "a quarter of the tokens, "]),
        ("videos --pretrain unlabeled", ["pretrain: {here}/unlabeled\n", "steps: 759 ", "steps: 600 "]),
        ("videos --pretrain unlabeled.csv", ["pretrain: {here}/unlabeled.csv\n", "input: differences "]),
        ("data --pretrain data", ["warning: --pretrain data has 6 videos of the validation or test list"]),
        ("--unlabeled data", ["such as {here}/data/0.mp4, so results will be too good"]),
        ("--unlabeled lettered", ["warning: --unlabeled lettered has 2 videos of the validation or test"]),
        ("videos", ["finetune: 600 steps of ", " clips; their time was not measured"]),
    ],
)
def test_a_recipe_fits_its_lists(here: Path, words: str, texts: list[str]):
    found = shown(f"--device {OTHER} {words.format(here=here)}")
    assert [text for text in texts if text.format(here=here) not in found] == []


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ("data --train b_train.csv", "everest eval|classes:"),
        ("data --train balanced.csv", "sampler:|flip:|task:"),
        ("data --pretrain unlabeled", "of the validation"),
        ("--unlabeled plain", "of the validation"),
        ("videos", "pretrain: "),
        ("videos --pretrain unlabeled", "layer_decay:"),
    ],
)
def test_a_recipe_has_nothing_of_other_lists(here: Path, words: str, absent: str):
    assert not re.search(absent, shown(f"--device {OTHER} {words}"))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("data", "finetune --init none"),
        ("data --train numbers.csv", "finetune --init none"),
        ("data --train rare.csv", "finetune --init none"),
        ("splits", "finetune --init none"),
        ("videos", "finetune --init none"),
        ("videos --unlabeled", "pretrain"),
        ("videos --pretrain unlabeled", "pretrain"),
    ],
)
def test_a_suggested_recipe_runs_alone(here: Path, words: str, command: str):
    shown(f"{words} --device cpu -q")
    called(f"{command} {DRY_RUN}")


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("data --train none.csv -o new/folder/mine.yaml", 4, "none.csv"),
        ("data --train=", 2, "--train: empty; name a list or a folder"),
        ("data --device 16GB", 2, "'16GB'"),
        ("data --hours 0", 2, "0.01"),
        ("data --hours inf", 2, "'--hours'"),
        (f"data --device {OTHER} --hours 1", 2, f"--hours: cannot measure the speed of --device {OTHER}"),
        ("data --task regression --unlabeled", 2, "--task: has no effect with --unlabeled"),
        ("data --task regression", 4, "train.csv:2: label 'run' is not a number"),
        ("data --train typo.csv", 4, "typo.csv:5: unknown class 'wolk'; did you mean 'walk'?"),
        ("data --val typo.csv", 4, "typo.csv:5: unknown class 'wolk'; did you mean 'walk'?"),
        ("data --pretrain broken", 4, "none of the videos can be read; the first: "),
        ("data --pretrain one.csv", 2, "one.csv: one video; pre-training compares"),
        ("videos --pretrain none", 4, "--pretrain none: no such list"),
        ("videos --pretrain run -o new/a.yaml", 2, " of videos, which will be split; name another folder"),
        ("videos --pretrain videos", 2, " of videos, which will be split; name another folder"),
        ("videos --pretrain linked", 2, " of videos, which will be split; name another folder"),
        ("videos --group (", 2, "--group"),
        ("videos -o videos/in.yaml", 2, "its lists would look like a class"),
        ("videos -o old.yaml", 2, "old.yaml: exists; choose another name, or use --overwrite"),
        ("lettered", 4, "--train a_train.csv reads the list that is there"),
        ("broken", 4, "no train.csv; `everest prepare split LIST` divides a list or a sheet"),
        ("none", 4, "no such folder"),
        ("old.yaml", 4, "name the folder of the videos, and a list in it with --train"),
    ],
)
def test_bad_input_is_named_and_changes_no_file(here: Path, words: str, code: int, problem: str):
    Path("linked").symlink_to("videos/run")
    Path("one.csv").write_text("../unlabeled/a/0.mp4\n")
    for name in ("broken/a.mp4", "broken/b.mp4", "lettered/a_train.csv", "old.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    before = contents(here)
    assert problem in refused(f"{SUGGEST} {words}", code=code)
    assert (contents(here), Path("new").exists()) == (before, False)


def test_class_folders_are_split_next_to_the_recipe(here: Path):
    before = sorted(here.rglob("videos/*/*.mp4"))
    shown("videos -q")
    lists = sorted(here.glob("mine-lists/*.csv"))
    assert [path.stem for path in lists] == ["test", "train", "val"]
    videos = [sample.path for path in lists for sample in read_samples(path, root=here / "videos").samples]
    assert sorted(videos) == list(map(str, before)) == list(map(str, sorted(here.rglob("videos/*/*"))))
    for path in sorted(here.glob("videos/*/*.mp4")):
        if path.stem not in ("0", "5"):
            path.unlink()
    assert "test: null\n" in shown("videos -q")
    assert not Path("mine-lists/test.csv").exists()
    for folder in ("Anna's mice", "a long name " * 9 + "of videos"):  # YAML quotes and folds these
        called("recipes suggest videos -q -o", f"{folder}/my.yaml")
        assert load_recipe(Path(folder, "my.yaml")).data.train == str(here / folder / "my-lists/train.csv")


def test_at_most_40_videos_are_opened(here: Path, monkeypatch: pytest.MonkeyPatch):
    copy_videos("videos/run", range(10, 99))
    opened, video_info = [], rules.video_info
    monkeypatch.setattr(rules, "video_info", lambda video: opened.append(video) or video_info(video))
    shown("videos --device cpu -q")
    assert len(opened) == 40
    called(f"pretrain {DRY_RUN}")


def test_a_list_of_many_videos_gets_a_recipe_of_the_paper(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("everest_workflows.suggest.suggestion.MIN_PAPER_VIDEOS", 40)
    text = shown(f"unlabeled --unlabeled --device {OTHER}")
    assert "base: k400 # tables and sections: EVEREST paper (ICML 2024)" in text
    assert "epochs: 1200000 # as many clips as 200 epochs (Table 7) of the 240,000 videos of Kinetics" in text
    called("recipes show mine.yaml --resolved")


def test_the_list_pretrain_csv_next_to_train_csv_is_pre_trained_on(here: Path):
    lines = Path("data/train.csv").read_text("utf-8").splitlines()
    Path("data/pretrain.csv").write_text("path\n" + "\n".join(line.split(",")[0] for line in lines[1:]))
    for options in ("", "--unlabeled", "--unlabeled --pretrain pretrain.csv"):
        shown(f"data -q {options}")
        data = load_recipe(MINE).data
        assert (data.train, data.test, data.pretrain) == ("train.csv", "test.csv", "pretrain.csv")
        called(f"pretrain {DRY_RUN}")
    shown("data -q --train train.csv")
    assert load_recipe(MINE).data.pretrain is None


def test_short_videos_for_pre_training_are_read_without_gaps(here: Path):
    Path("short").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(Path("short", name), torch.zeros(16, 32, 32, 3, dtype=torch.uint8), fps=16)
    shown("data --pretrain short -q")
    recipe = load_recipe(MINE)
    assert (recipe.pretrain.stride, recipe.finetune.stride) == (1, 1)  # of 16 frames, and of 32


@pytest.mark.slow
def test_the_steps_and_the_time_of_each_stage_are_printed_also_as_json(here: Path):
    measured = r"^finetune: 600 steps of 16 clips, about \d+ (s|min) at \d+ clips/s \(measured\)$"
    assert re.search(measured, shown("data --device cpu"), re.MULTILINE)
    MINE.unlink()
    document = json_of(f"{SUGGEST} videos --device cpu --pretrain unlabeled")
    assert [stage["stage"] for stage in document["stages"]] == ["pretrain", "finetune"]
    assert [command.split()[1] for command in document["next"]] == ["pretrain", "finetune", "eval"]
    stage = document["stages"][1]
    assert (stage["steps"], stage["batch_size"]) == (600, 16)
    assert stage["seconds"] == round(600 * 16 / stage["clips_per_second"])


@pytest.fixture
def suggestion(clip_files: Path, tmp_path: Path) -> Suggestion:
    section = make_data_section(str(clip_files))
    return suggest_recipe(section, "cpu", purpose="scratch", output=tmp_path / "r.yaml")


def test_each_size_costs_less_than_the_one_before(suggestion: Suggestion):
    costs = []
    for size in MODEL_SIZES:
        sized = replace(suggestion, size=size, overrides=[f"data.size={size.side}"])
        costs.append(total_macs(classifier_spec(sized.recipe, (Head(outputs=4),))))
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == len(MODEL_SIZES)


def test_the_largest_size_that_is_fast_enough_is_taken_and_the_test_has_one_view(suggestion: Suggestion):
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    fitted = fit_latency(suggestion, 1e9)
    assert (fitted.size, 0 < fitted.network_ms < 1e9) == (MODEL_SIZES[-2], True)  # that of a CPU, no larger
    smallest = fit_latency(suggestion, 1e-6)
    assert (smallest.size, smallest.network_ms > 1e-6) == (MODEL_SIZES[-1], True)
    for each in (fitted, smallest):
        assert (each.recipe.eval.clips, each.recipe.eval.crops) == (1, 1)
        assert "ms a clip on a CPU" in each.text
    assert "the largest that was measured to need at most" in fitted.text
    assert "the smallest, measured to need more than" in smallest.text
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


def test_clips_of_image_weights_have_as_many_frames_as_the_time_allows(suggestion, image_file):
    def one_ms_per_frame(model: Classifier, *, limit: float) -> NetworkTime:
        return NetworkTime(alone_ms=model.spec.frames, clock_ms=9 * model.spec.frames)  # on a busy machine

    start = read_weight_settings(f"timm:vit_tiny_patch16_224={image_file}", on_cpu=True)
    suggestion = replace(suggestion, start=start)
    for limit, frames, is_fast in ((11, 8, True), (10, 4, True), (3, 2, True), (1.9, 2, False)):
        fitted = fit_latency(suggestion, limit, measure=one_ms_per_frame)
        assert (fitted.recipe.data.frames, fitted.network_ms, fitted.is_fast) == (frames, frames, is_fast)
        assert "the most that --latency allows, at least 2" in fitted.text
    named = fit_latency(replace(suggestion, overrides=["data.frames=6"]), 1.9, measure=one_ms_per_frame)
    assert named.recipe.data.frames == 6


def test_a_model_stays_where_it_was(suggestion: Suggestion):
    model = classifier_spec(suggestion.recipe, (Head(outputs=2),)).build()
    device = model.device
    assert measure_network_time(model).alone_ms > 0
    assert model.device == device
