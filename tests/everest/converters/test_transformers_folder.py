import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import problem_of, tiny
from hub_cache import CONFIG, cached, transformers_folder
from small_runs import equal
from tiny_models import randomized, save_model

from everest.checkpoints.graph import sample_pixels
from everest.checkpoints.init import find_init, read_init
from everest.checkpoints.load import open_model
from everest.checkpoints.transformers import write_folder
from everest.config.heads import Head
from everest.config.settings import ModelSettings
from everest.converters.convert import convert
from everest.converters.foreign_checkpoint import read_foreign
from everest.converters.recognition import Hints
from everest.errors import RecipeError
from everest.methods.strategies import AllTokens
from everest.models.classifier import ClassifierSpec
from everest.video.pixels import IMAGENET, PixelStatistics

HALF = PixelStatistics(mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5))
SMALL = ClassifierSpec(
    frames=4,
    size=(32, 32),
    model=ModelSettings(backbone="vit-tiny", width=24, depth=1, heads=2, tubelet=(2, 8, 8)),
    selection=AllTokens(),
    heads=(Head(outputs=3),),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As transformers saves a classifier."""
    return transformers_folder(tmp_path / "videomae-tiny")


def test_a_run_starts_from_the_links_of_a_cache(folder: Path, tmp_path: Path):
    snapshot = cached(tmp_path / "hub", "someone/videomae-tiny", folder)
    for name in (snapshot, snapshot / "model.safetensors"):
        init = read_init(find_init(name, output=None, overwrite=False), resumed=None)
        assert torch.equal(
            init.weights.tensors["head.weight"], tiny("hf_videomae_classification_base")["classifier.weight"]
        )
        assert (init.saved.frames, init.saved.size) == (4, (32, 32))
        assert init.origin["family"] == "transformers"
        assert Path(init.origin["file"]).parent == snapshot


def test_the_weights_of_a_run_are_recognized_behind_a_link(folder: Path, tmp_path: Path):
    (tmp_path / "link.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(RecipeError, match="holds the weights of --init"):
        find_init(tmp_path / "link.safetensors", output=folder, overwrite=True)


@torch.no_grad()
def test_a_written_folder_is_read_with_the_same_pixels_and_logits(tmp_path: Path):
    clip = {"stride": 3, "sampling": "dense"}
    spec = replace(SMALL, pixels=HALF)
    torch.manual_seed(0)
    given = open_model(save_model(tmp_path / "model.safetensors", spec, randomized(spec.build()), clip=clip))
    write_folder(tmp_path / "hf", given)
    back = open_model(tmp_path / "hf")
    assert (back.spec.pixels, back.weights.clip) == (HALF, clip)
    assert equal(back.weights.tensors, given.weights.tensors)
    frames = sample_pixels(SMALL, 2)
    logits, expected = (each.transformer(each.transformer.pixels.normalize(frames)) for each in (back, given))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(expected, given.transformer(IMAGENET.normalize(frames)), atol=1e-2)


HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}
BYTES = {"image_mean": [127.5] * 3, "image_std": [127.5, 63.75, 127.5]}
READ = {
    "rescaled": (HALVES | {"do_rescale": True, "rescale_factor": 1 / 255}, HALF),
    "few digits": (HALVES | {"rescale_factor": 0.00392157}, HALF),
    "bytes": (BYTES | {"do_rescale": False}, HALF),
    "from -1 to 1": ({"image_mean": 1, "image_std": [1, 0.5, 1], "rescale_factor": 1 / 127.5}, HALF),
    "not normalized": ({"do_normalize": False}, PixelStatistics(mean=(0,) * 3, std=(1,) * 3)),
    "ImageNet": ({"image_mean": list(IMAGENET.mean), "image_std": list(IMAGENET.std)}, IMAGENET),
}


@pytest.mark.parametrize("name", READ)
def test_the_pixels_of_a_preprocessor_are_read(name: str, folder: Path):
    content, expected = READ[name]
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    identity = convert(read_foreign(folder), Hints()).identity
    assert identity.spec.pixels.mean == pytest.approx(expected.mean)
    assert identity.spec.pixels.std == pytest.approx(expected.std)
    assert identity.notes == ()
    frames = torch.arange(256, dtype=torch.uint8).expand(3, 1, 1, -1)
    scale = content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1
    theirs = frames * scale
    if content.get("do_normalize", True):
        mean, std = (torch.tensor(content[key]).view(-1, 1, 1, 1) for key in ("image_mean", "image_std"))
        theirs = (theirs - mean) / std
    torch.testing.assert_close(identity.spec.pixels.normalize(frames), theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean.2: Field required"),
        ({"image_mean": "half"}, "image_mean.0: Input should be a valid number"),
        ({"image_std": [0, 0, 0]}, "a std must be from 1e-06"),
        ({"image_mean": [123.7, 116.3, 103.5]}, "a mean must be from 0 to 1"),
        ({"do_normalize": "no"}, "do_normalize: Input should be a valid boolean"),
        ({"rescale_factor": 0}, "rescale_factor: Input should be greater than 0"),
        ({"rescale_factor": 10**400}, "rescale_factor: Input should be a valid number"),
        ([], "not a configuration"),
    ],
)
def test_pixels_that_no_frames_have_are_refused(content: Any, message: str, folder: Path):
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    assert message in problem_of(lambda: convert(read_foreign(folder), Hints()))


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"resample": 3}, "(resample 3)"),
        ({"do_resize": False}, "(do_resize False)"),
        ({"do_center_crop": False}, "(do_center_crop False)"),
        ({"do_resize": "no", "resample": [2]}, "(do_resize no, resample [2])"),
        ({"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}, "(size {'shortest_edge'"),
        ({"size": 32}, None),
        ({"size": {"shortest_edge": 32}}, None),
        ({"do_resize": True, "do_center_crop": True, "resample": 2}, None),
    ],
)
def test_another_way_to_resize_is_reported(folder: Path, content: dict[str, Any], note: str | None, caplog):
    (folder / "preprocessor_config.json").write_text(json.dumps(HALVES | content))
    open_model(folder)
    assert caplog.text.count("resizes frames in another way") == (note is not None)
    assert note is None or note in caplog.text
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    open_model(folder)
    assert "states no mean and std: frames are normalized by ImageNet's" in caplog.text


def test_a_stride_must_be_a_number_and_the_preprocessor_of_videos_comes_first(folder: Path):
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(HALVES))
    assert convert(read_foreign(folder), Hints()).identity.spec.pixels == HALF
    (folder / "config.json").write_text(json.dumps(CONFIG | {"frame_sample_rate": "2"}))
    assert "frame_sample_rate: Input should be a valid integer" in problem_of(open_model, folder)


@pytest.mark.parametrize(
    ("stride", "sampling", "fps", "text"),
    [
        (4, "segment", None, "a clip spans the whole video (segment sampling)"),
        (1, "segment", 10.0, "a clip spans the whole video (segment sampling)"),
        (2, "dense", 10.0, "the frames of a clip are 2 frames at 10 per second apart"),
    ],
)
def test_frames_that_a_config_cannot_state_are_noted(tmp_path, stride, sampling, fps, text):
    clip = {"stride": stride, "sampling": sampling} | ({"fps": fps} if fps else {})
    opened = open_model(save_model(tmp_path / "model.safetensors", replace(SMALL, size=(32, 48)), clip=clip))
    notes = write_folder(tmp_path / "hf", opened)["notes"]
    assert f"{text}, which its config.json cannot state" in notes
    assert "frame_sample_rate" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    (note,) = [note for note in notes if "preprocessor" in note]  # the frames are not square
    assert "resizes frames in another way (size {'shortest_edge': 48})" in note
    assert "everest.read_clip" in note


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_broken_links_of_a_cache_are_named(folder: Path, name: str):
    (folder / name).unlink()
    (folder / name).symlink_to("../blobs/gone")
    message = f"{name}: a link to ../blobs/gone, which does not exist; download"
    assert message in problem_of(read_foreign, folder)
    if name != "config.json":
        for path in (folder, folder / name):
            assert message in problem_of(find_init, path, output=None, overwrite=False)
