"""The functions of `everest` that do what the commands do: their numbers are the commands' to the bit."""

import importlib.metadata
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import called, json_of, same_run

import everest
from everest.data.views import EvalViews
from everest.errors import CheckpointError, DataError, RecipeError
from everest.inference.opened_model import encode_clips
from everest.lists.sample import Sample
from everest.models.classifier import VideoClassifier

UNTIMED = {"seconds": 0}


@pytest.fixture(scope="module")
def classifier(classifier_run: Path) -> VideoClassifier:
    return everest.load_model(classifier_run)


def alone(run: Path, folder: Path) -> Path:
    """The weights of a run without its recipe."""
    return Path(shutil.copy(run / "model.safetensors", folder / "alone.safetensors"))


def test_the_version_is_that_of_the_package():
    assert everest.__version__ == importlib.metadata.version("everest-video")
    assert "__version__" in dir(everest)
    assert called("--version").stdout.split() == ["everest", everest.__version__]


def test_a_model_knows_its_clips_and_classes(classifier: VideoClassifier, clip_files: Path):
    assert classifier.classes == ("0", "1")
    clip = classifier.clip
    assert (clip.frames, clip.stride, clip.size, clip.fps) == (4, 2, (32, 32), None)
    assert clip.mean == (0.485, 0.456, 0.406)
    assert clip.std == (0.229, 0.224, 0.225)
    video = clip_files / "clip0.mp4"
    x = classifier.transform(video)
    views = EvalViews(frames=4, stride=2, size=(32, 32), clips=1, crops=1)
    expected = views(Sample(path=str(video)), np.random.default_rng(0), "auto").frames
    assert torch.equal(x, everest.normalize(expected))
    assert torch.equal(everest.normalize(everest.read_clip(video, like=classifier))[None], x)
    with torch.no_grad():
        assert classifier(x).shape == (1, 2)
    given = everest.read_clip(video, like=classifier, frames=6, stride=3, size=16)  # win over the model
    assert torch.equal(given, everest.read_clip(video, frames=6, stride=3, size=16))
    with pytest.raises(ValueError, match="stride must be at least 1, not 0"):
        everest.read_clip(video, like=classifier, stride=0)


def test_an_autoencoder_knows_the_clips_of_pre_training(autoencoder_run: Path, clip_files: Path):
    model = everest.load_model(autoencoder_run)
    assert (model.clip.frames, model.clip.stride, model.classes) == (4, 2, ())
    assert model(model.transform(clip_files / "clip0.mp4")).loss > 0


@pytest.mark.parametrize("run", ["autoencoder_run", "classifier_run"])
def test_a_model_reads_the_pixels_of_extract(run: str, clip_files, tmp_path, request):
    folder = Path(shutil.copytree(request.getfixturevalue(run), tmp_path / "run"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["pretrain"]["stride"], recipe["finetune"]["stride"] = 1, 3
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    model, video = everest.load_model(folder), clip_files / "clip3.mp4"
    written = tmp_path / "tokens.safetensors"
    called("extract", video, "-c", folder, "--views", "1x1", "--features", "tokens", "-o", written)
    x, tensors = model.transform(video), load_file(written)
    with torch.inference_mode():
        encoded = encode_clips(model, x, None)
    assert torch.equal(tensors["token_ids"][0], encoded.ids)
    assert torch.equal(tensors["features"][0], encoded.tokens)
    assert torch.equal(everest.normalize(everest.read_clip(video, like=model))[None], x)


def test_weights_without_a_recipe_know_their_stride(classifier_run, clip_files, tmp_path, caplog):
    file = alone(classifier_run, tmp_path)
    model = everest.load_model(file)
    assert (model.clip.frames, model.clip.stride, model.clip.size) == (4, 2, (32, 32))
    assert not caplog.text
    shown = called("predict", clip_files / "clip0.mp4", "-c", file, "--json", "--gpus", "cpu")
    assert "sampled as in recipe ucf101, at stride 2; as in training" in shown.stderr
    assert everest.predict(model, clip_files / "clip0.mp4") == json.loads(shown.stdout)


def test_a_new_model_knows_its_clips(clip_files: Path):
    heads = {"verb": 2, "noun": 3}
    clip = {"frames": 4, "stride": 3, "size": 32}
    model = everest.create_model("vit-tiny", kind="classifier", num_classes=heads, depth=1, **clip)
    assert (model.clip.frames, model.clip.stride, model.file) == (4, 3, None)
    assert model.classes == ("verb 0", "verb 1", "noun 0", "noun 1", "noun 2")
    (row,) = everest.predict(model, [clip_files / "clip0.mp4"], top=2, clips=1, crops=1)
    assert {head: len(best) for head, best in row["heads"].items()} == {"verb": 2, "noun": 2}
    assert sum(each["probability"] for each in row["heads"]["verb"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({}, ""),
        (
            {"clips": 2, "crops": 1, "keep": 0.5, "top": 1, "batch": 3},
            "--views 2x1 --keep 0.5 --top 1 --batch 3",
        ),
    ],
)
def test_predictions_are_those_of_the_command(classifier, clip_files, options, given):
    videos = clip_files / "train.csv"
    expected = json_of("predict", videos, "-c", classifier.file, *given.split())
    assert everest.predict(classifier, videos, **options) == expected
    assert everest.predict(classifier, [str(videos)], workers=1, **options) == expected


def test_an_unreadable_video_has_an_error(classifier: VideoClassifier, clip_files: Path, tmp_path: Path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    videos = [clip_files / "clip0.mp4", broken]
    rows = everest.predict(classifier, videos)
    assert rows == json_of("predict", *videos, "-c", classifier.file, code=4)
    assert rows[1] == {"video": str(broken), "error": "not a video file"}
    features = everest.extract(classifier, videos)
    assert (features.videos, features.skipped) == ([str(videos[0])], [(str(broken), "not a video file")])
    with pytest.raises(DataError, match=r"none of 1 videos can be read, first .*broken\.mp4: not a video"):
        everest.extract(classifier, broken)
    with pytest.raises(DataError, match=r"none of 0 videos can be read$"):
        everest.extract(classifier, [])


@pytest.mark.parametrize("level", ["video", "views", "tokens"])
@pytest.mark.parametrize("kind", ["classifier", "autoencoder"])
def test_features_are_the_commands(classifier_run, autoencoder_run, clip_files, tmp_path, kind, level):
    run, out = classifier_run if kind == "classifier" else autoencoder_run, tmp_path / "features.safetensors"
    options = ["--features", level, "--keep", 0.5, "--batch", 3, "-o", out]
    called("extract", clip_files / "train.csv", "-c", run, *options)
    written = load_file(out)
    found = everest.extract(everest.load_model(run), clip_files / "train.csv", level=level, keep=0.5, batch=3)
    assert found.videos == [str(clip_files / f"clip{number}.mp4") for number in range(4)]
    assert torch.equal(found.features, written["features"])
    if level == "tokens":
        assert torch.equal(found.token_ids, written["token_ids"])
    else:
        assert found.token_ids is None


def test_evaluation_is_that_of_the_command(classifier: VideoClassifier, tmp_path: Path):
    written = [tmp_path / "command.csv", tmp_path / "function.csv"]
    given = ["--predictions", written[0]]
    expected = json_of("eval --gpus cpu", "-c", classifier.file, *given)
    found = everest.evaluate(classifier, predictions=written[1])
    assert found | UNTIMED == expected | UNTIMED
    assert written[1].read_bytes() == written[0].read_bytes()
    with pytest.raises(RecipeError, match=r"function\.csv: exists"):
        everest.evaluate(classifier, predictions=written[1])
    with pytest.raises(RecipeError, match=rf"^page {tmp_path}: holds other files"):
        everest.evaluate(classifier, page=tmp_path)
    with pytest.raises(RecipeError, match=r"best\.safetensors: is an input"):
        everest.evaluate(classifier, predictions=classifier.file, overwrite=True)


def test_other_videos_and_views_can_be_evaluated(classifier_run: Path, clip_files: Path, tmp_path: Path):
    (tmp_path / "other.csv").write_text(f"{clip_files}/clip1.mp4 1\n{clip_files}/clip2.mp4 0\n")
    moved = everest.load_model(alone(classifier_run, tmp_path))
    found = everest.evaluate(moved, data=tmp_path, test="other.csv", clips=2, crops=1, workers=0)
    command = "eval --gpus cpu --set data.test=other.csv --set eval.clips=2 --set eval.crops=1"
    expected = json_of(command, "-c", classifier_run / "model.safetensors", "--data", tmp_path)
    same = {"checkpoint": "", "recipe": "", **UNTIMED}
    assert found | same == expected | same


def test_only_a_classifier_predicts(autoencoder_run: Path, clip_files: Path):
    model = everest.load_model(autoencoder_run)
    for refused in (lambda: everest.predict(model, clip_files), lambda: everest.evaluate(model)):
        with pytest.raises(CheckpointError, match="a pretrain checkpoint where a classifier one is needed"):
            refused()
    with pytest.raises(TypeError, match=r"expected a model, got str; everest\.load_model opens one"):
        everest.predict("runs/finetune", clip_files)  # type: ignore[arg-type]


def test_odd_arguments_are_refused(classifier: VideoClassifier, clip_files: Path):
    seconds = r"must be a number of seconds from 0\.001 on, not "
    odd_seconds = (0, -1, 0.0009, float("inf"), float("nan"))
    for function, options, message in (
        (everest.extract, {"keep": "0.5"}, "keep '0.5': must be a number above 0 and at most 1, and"),
        (everest.extract, {"keep": 0.0}, "keep 0.0: must be a number above 0 and at most 1, and leave some"),
        (everest.extract, {"keep": 0.001}, r"keep 0\.001: must be a number above 0"),
        (everest.extract, {"clips": 0}, "clips=0: must be at least 1"),
        (everest.extract, {"batch": 0}, "batch=0: must be at least 1"),
        (everest.extract, {"level": "vide"}, "level: unknown name 'vide'; did you mean 'video'"),
        *((everest.timeline, {"window": odd}, f"window: {seconds}") for odd in odd_seconds),
        *((everest.timeline, {"step": odd}, f"step: {seconds}") for odd in odd_seconds),
        (everest.predict, {"top": 0}, "top=0: must be at least 1$"),
        (everest.predict, {"batch": 0}, "batch=0: must be at least 1$"),
        (everest.timeline, {"batch": -1}, "batch=-1: must be at least 1$"),
    ):
        with pytest.raises(RecipeError, match=f"^{message}"):
            function(classifier, clip_files / "clip0.mp4", **options)


def test_training_is_that_of_the_commands(tmp_path: Path, recipe: Path):
    events = []
    seed = {"overrides": ["train.seed=3"]}
    encoder = everest.pretrain(recipe, output=tmp_path / "encoder", **seed, cpu=True, emit=events.append)
    assert encoder == tmp_path / "encoder"
    assert {event["event"] for event in events} == {"heading", "step", "warning"}
    options = ["-r", recipe, "--set", "train.seed=3", "--gpus", "cpu", "-q"]
    called("pretrain", *options, "-o", tmp_path / "encoder2")
    assert same_run(encoder, tmp_path / "encoder2")

    with ThreadPoolExecutor(max_workers=1) as thread:  # as in a notebook
        start = {"init": encoder, "output": tmp_path / "run", "overrides": ["train.seed=3"], "cpu": True}
        run = thread.submit(everest.finetune, recipe, **start).result()
    called("finetune", *options, "--init", encoder, "-o", tmp_path / "run2")
    assert same_run(run, tmp_path / "run2")
    called("finetune", *options, "--init", encoder, "-o", run)  # the function's run is finished for it, too

    with pytest.raises(RecipeError, match=r"different settings: --init \(\".*\", now null\)"):
        everest.finetune(recipe, init=None, output=run, overrides=["train.seed=3"], cpu=True)
    with pytest.raises(RecipeError, match="holds a run, and resume is off"):
        everest.finetune(recipe, init=encoder, output=run, overrides=["train.seed=3"], cpu=True, resume=False)
    with pytest.raises(RecipeError, match="holds the weights of --init"):
        everest.finetune(recipe, init=encoder, output=encoder, cpu=True)
