"""The commands and the code of README and docs, run as they stand on small videos."""

import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from archives import ARCHIVES
from foreign import saved
from hub_cache import cached
from huggingface_hub import constants
from processes import everest as everest_process
from small_runs import called

import everest
from everest.checkpoints.load import open_model
from everest.checkpoints.transformers import write_folder
from everest.config.recipe import load_recipe
from everest.methods.strategies import STRATEGIES
from everest.models.spec import pretrain_spec
from everest.profiling import timing
from everest.system.weights import Weights
from everest.system.weights_header import WeightsHeader
from everest.video.writer import write_video
from everest_workflows.suggest import suggestion

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# They train a tokenizer, run jobs in processes of their own, or write many files.
LONG = (
    *("lvmae", "sweeps", "large", "performance", "running", "methods", "install", "files", "timelines"),
    *("pretraining", "long-recordings", "using", "export", "starting", "recipes"),
)
NO_COMMANDS = ("index", "faq", "messages", "python")
STAGES = ("pretrain", "finetune", "train-tokenizer")
FEW_SEEDS = ["--seeds", "1", "--jobs", "2"]  # the last value of an option counts
TOKENS = ["prepare", "tokens"]  # of the clips of a stage
DATA_SETS = {name: name.upper() for name in ("ucf101", "hmdb51", "ssv2", "kinetics", "oscc", "diving48")}
DATA_SETS |= {"epic-kitchens-100": "EPIC"}
# What makes a run of any recipe small; nothing else of a command is changed.
SMALL = [
    *("data.size=32", "data.frames=4", "model.backbone=vit-tiny", "model.tubelet=[2, 8, 8]", "model.depth=1"),
    *("train.workers=0", "pretrain.epochs=1", "pretrain.batch_size=4", "finetune.epochs=1"),
    "finetune.batch_size=4",
]
# The tokenizer's tokens are those of its recipe, so the clips stay as they are.
SMALL_LVMAE = [
    *("train.workers=0", "tokenizer.channels=8", "tokenizer.epochs=1", "tokenizer.warmup_epochs=0"),
    *("tokenizer.batch_size=4", "data.frames=16", "model.depth=1", "pretrain.epochs=1"),
    *("pretrain.batch_size=4", "finetune.epochs=1", "finetune.batch_size=4"),
]


def text_of(page: Path) -> str:
    """The text that a person wrote."""
    return re.sub(r"<!-- generated.*<!-- end -->", "", page.read_text(), flags=re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def headings(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = (title.lower() for title in re.findall(r"^#+ (.*)", text, flags=re.MULTILINE))
    return {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[list[str]]:
    """The commands of a page: the lines of its programs, and of its sessions the lines after a prompt."""
    lines = [
        line.removeprefix("$ ")
        for language, block in re.findall(r"```(sh|console)\n(.*?)```", text_of(page), flags=re.DOTALL)
        for line in block.splitlines()
        if language == "sh" or line.startswith("$ ")
    ]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("everest ")]


def test_every_image_is_shown_and_small():
    shown = {
        (page.parent / name).resolve()
        for page in PAGES
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    assert {image for image in shown if ROOT / "docs" in image.parents} == set((ROOT / "docs").rglob("*.png"))
    assert all(image.stat().st_size < 400_000 for image in shown)


def write_videomae(folder: Path) -> None:
    """Write a small VideoMAE with random weights as transformers does."""
    spec = pretrain_spec(load_recipe("custom", overrides=SMALL))
    header = {"kind": "pretrain", "settings": spec.dump(), "classes": None, "recipe": "custom", "step": 0}
    weights = Weights(**header, tensors=spec.build().state_dict())
    weights.save(folder.with_suffix(".safetensors"))
    write_folder(folder, open_model(folder.with_suffix(".safetensors")))


@pytest.fixture
def videos(tmp_path: Path, clip_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in with videos in VIDEOS."""
    shutil.copytree(clip_files, tmp_path / "VIDEOS")
    shutil.copy(clip_files / "train.csv", tmp_path / "VIDEOS" / "test.csv")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def desk(videos, tmp_path, clip_files, image_file, monkeypatch) -> Path:
    """A folder to work in, also with imitations of data sets and what the official code saved."""
    shutil.copy(clip_files / "clip0.mp4", tmp_path / "video.mp4")
    foreign = everest.create_model("vit-tiny", kind="pretrain", tubelet=(2, 8, 8), depth=1, frames=4, size=32)
    saved(tmp_path / "checkpoint-799.pth", foreign.state_dict())
    write_videomae(tmp_path / "videomae-base")
    cached(tmp_path / "hub", "MCG-NJU/videomae-base", tmp_path / "videomae-base")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "vit_tiny.safetensors").symlink_to(image_file)
    (tmp_path / "timm").mkdir()
    shutil.copy(image_file, tmp_path / "timm" / "model.safetensors")
    cached(tmp_path / "hub", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", tmp_path / "timm")
    monkeypatch.setattr(timing, "READING_SECONDS", 0.1)
    monkeypatch.setattr(suggestion, "MIN_PAPER_VIDEOS", 4)  # docs/large.md
    for name, folder in DATA_SETS.items():
        ARCHIVES[name](tmp_path / folder)
    for number, name in enumerate(["run", "walk", "run", "walk"]):
        (tmp_path / "ACTIONS" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip_files / f"clip{number}.mp4", tmp_path / "ACTIONS" / name)
    for number, name in enumerate(["bend", "jack"]):  # of seven persons, as in docs/start/your-videos.md
        (tmp_path / "CLIPS" / name).mkdir(parents=True)
        for person in ("daria", "denis", "eli", "ido", "ira", "lena", "moshe"):
            shutil.copy(clip_files / f"clip{number}.mp4", tmp_path / "CLIPS" / name / f"{person}.mp4")
    for shift in range(7):  # of a production line, as in docs/export.md
        for number, name in enumerate(["ok", "jam"]):
            (tmp_path / "LINE" / name).mkdir(parents=True, exist_ok=True)
            clip = tmp_path / "LINE" / name / f"line2_shift0{shift}_{number:03}.mp4"
            shutil.copy(clip_files / f"clip{number}.mp4", clip)
    shutil.copytree(tmp_path / "LINE" / "ok", tmp_path / "FOOTAGE")
    shutil.copytree(tmp_path / "LINE", tmp_path / "NEW")
    rows = [f"ACTIONS/{name}/clip{i}.mp4,{name},m{i}\n" for i, name in enumerate(["run", "walk"])]
    videos = [f"clip{number}.mp4" for number in range(4)]
    for name, labels in (("tags", ("run|jump", "run", "", "jump")), ("speeds", ("0.5", "1.25", "2", "0"))):
        lines = [f"{path},{label}\n" for path, label in zip(videos, labels, strict=True)]
        (tmp_path / "VIDEOS" / f"{name}.csv").write_text("".join(["path,label\n", *lines]))
    (tmp_path / "truth.csv").write_text("video,start,end,label\nclip0.mp4,0,1,0\nvideo.mp4,0.5,1.5,1\n")
    shutil.copytree(tmp_path / "ACTIONS", tmp_path / "UNLABELED")
    (tmp_path / "RECORDINGS").mkdir()
    for clip in clip_files.glob("clip*.mp4"):
        shutil.copy(clip, tmp_path / "RECORDINGS")
    (tmp_path / "OTHERS").mkdir()
    for animal in (1, 2):
        for day in (1, 2, 3):
            shutil.copy(clip_files / "clip0.mp4", tmp_path / "OTHERS" / f"m{animal}_day0{day}.mp4")
    (tmp_path / "SHEET.csv").write_text("".join(["file,behavior,animal\n", *rows]))
    for page in PAGES:  # files that a page shows with their names
        for text in blocks(page, "(?:python|yaml)"):
            if name := re.match(r"# (\S+\.(?:py|yaml))\n", text):
                path = tmp_path / name[1]
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
    bouts = [
        f"C:\\lab\\clip{number}.mp4,{begin},{begin + 0.75},{name}\n"
        for number in range(4)
        for name, begin in (("run", 0), ("walk", 0.75))
    ]
    for file in ("annotated.csv", "second.csv"):
        (tmp_path / file).write_text("".join(["video,start,end,label\n", *bouts]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the jobs of a sweep
    return tmp_path


def run(arguments: list[str]) -> None:
    if arguments[0] == "demo":  # minutes; tests/everest/demo runs it on fewer videos
        return
    if arguments[0] in (*STAGES, "train") or arguments[:2] == TOKENS:
        small = SMALL_LVMAE if any(argument.startswith("lvmae") for argument in arguments) else SMALL
        if set(DATA_SETS.values()) & set(arguments):  # imitations, which have few of the classes
            small = [*small, "data.num_classes=null"]
        from_images = any(argument.startswith("timm:") for argument in arguments)
        if from_images or (arguments[0] == "train" and "--init" in arguments):  # the encoder of the weights
            small = [value for value in small if not value.startswith("model.")]
        arguments = [*arguments, *(f"--set={value}" for value in small)]
    if arguments[0] == "sweep" and not {"report", "--dry-run"} & set(arguments):
        arguments = [*arguments, *FEW_SEEDS, *(f"--set={value}" for value in SMALL)]
    if "--processes" in arguments:  # starts its command again, so that it must be one
        everest_process(*arguments)
        return
    if ">" in arguments:
        *arguments, _, file = arguments
        Path(file).write_text(called(*arguments).stdout)
        return
    called(*arguments)
    if arguments[:1] == ["budget"] and "--draw" in arguments:  # a person looks at the windows
        sampled = Path(arguments[arguments.index("--output") + 1])
        sampled.write_text(sampled.read_text().replace("to check", "checked"))


def rows_of_the_paper() -> list[str]:
    """The training commands in the tables of docs/paper.md."""
    found = re.findall(r"`everest ((?:pretrain|finetune) [^`]*)`", (ROOT / "docs" / "paper.md").read_text())
    return sorted(set(found))


@pytest.mark.parametrize("row", rows_of_the_paper())
@pytest.mark.usefixtures("videos")
def test_every_row_of_the_paper_makes_a_step(row: str):
    command, *options = row.replace("--init PT", "--init none").split()
    small = [f"--set={value}" for value in SMALL]
    result = called(command, *small, *options, "--data", "VIDEOS", "--gpus", "cpu", "--dry-run")
    assert re.search(r"^loss: \d", result.stdout)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in LONG)) for page in PAGES],
    ids=lambda page: str(page.relative_to(ROOT).with_suffix("")).removeprefix("docs/"),
)
def test_every_command_of_a_page_runs(page: Path, desk: Path):
    if page.stem == "large":  # which has no test video in training
        noise = torch.randint(0, 256, (2, 32, 48, 64, 3), dtype=torch.uint8)
        for i in range(2):
            write_video(desk / "VIDEOS" / f"test{i}.mp4", noise[i], fps=16)
        (desk / "VIDEOS" / "test.csv").write_text("test0.mp4 0\ntest1.mp4 1\n")
    for arguments in commands(page):
        run(arguments)
    for code in blocks(page, "python"):
        code = code.replace("frames=16, stride=4, size=224", "frames=4, size=32")
        code = re.sub(r'(everest\.(?:pretrain|finetune|train)\("\w+", )', rf"\1overrides={SMALL}, ", code)
        exec(compile(code, page.name, "exec"), {})


def test_recipes_in_the_docs_are_read(desk: Path):
    small = [f"--set={value}" for value in SMALL if value.startswith(("data.", "model."))]
    shutil.copy(desk / "VIDEOS" / "train.csv", desk / "VIDEOS" / "val.csv")
    for name, written in (("small-views", "both"), ("k400", "many")):  # as `recipes suggest` writes
        shutil.copy(ROOT / "recipes" / f"{name}.yaml", desk / f"{written}.yaml")
    run(["pretrain", "--recipe", "both.yaml", "--data", "VIDEOS", "--output", "runs/encoder"])
    for name in ("everest", "videomae"):  # the runs of three seeds
        for seed in range(3):
            shutil.copytree(desk / "runs" / "encoder", desk / "runs" / f"{name}{seed}")
    for page in PAGES:
        for text in blocks(page, "yaml"):
            (desk / "shown.yaml").write_text(text)
            if "\nvariants:" in text:
                options = ["--data", "VIDEOS", "--output", "runs/shown", "--dry-run", *small]
                run(["sweep", "shown.yaml", *options])
            else:
                run(["recipes", "show", "shown.yaml"])


def test_every_page_has_commands_and_every_link_leads_somewhere():
    for page in PAGES:
        assert commands(page) or page.stem in NO_COMMANDS, page.name
        for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
            led_to = page.parent / target if target else page
            assert led_to.exists(), f"{page.name}: {target}"
            if heading:
                assert heading in headings(led_to), f"{page.name}: {target}#{heading}"


def test_every_strategy_has_its_row():
    methods = (ROOT / "docs" / "methods.md").read_text()
    assert [name for name in STRATEGIES if f"\n| `{name}` |" not in methods] == []


def test_every_key_of_a_weights_file_is_listed():
    text = (ROOT / "docs" / "reference" / "files.md").read_text()
    assert [each.name for each in fields(WeightsHeader) if f"`{each.name}`" not in text] == []


def test_readme_has_the_two_commands_and_is_short():
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text
    assert len(text.splitlines()) <= 130
