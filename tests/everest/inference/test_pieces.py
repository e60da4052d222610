"""Overlapping windows have the outputs of windows computed one by one; no piece is encoded twice."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import with_hole
from timed_videos import write_frames
from tiny_models import randomized

from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.data.views import EvalViews
from everest.inference.opened_model import OpenedModel
from everest.inference.pieces import PieceModel
from everest.inference.videos import (
    Batching,
    compute_over_segments,
    compute_over_videos,
    compute_over_windows,
)
from everest.inference.windows import Unreadable, Window, step_on_grid
from everest.lists.sample import Sample
from everest.models.classifier import Classifier
from everest.models.image_classifier import PixelSpec
from everest.models.mean import MeanClassifier
from everest.models.spec import classifier_spec

HEADS = (Head(outputs=3),)
SPREAD = ("data.num_classes=3", "finetune.sampling=spread", "finetune.selection={strategy: all}")
FRAMES = ("model.tubelet=[1, 8, 8]", "model.attention=slice", "model.positions=learned-separable")
TIMES = torch.tensor(
    [0, 1, 2, 4, 8, 9, 10, 13, 20, 21, 22, 23, 24, 29, 30, 31, 33, 40, 41, 42, 50, 51, 52, 53]
)


def by_frames(recipe: Recipe) -> Classifier:
    """An encoder of single frames, with the positions of image weights."""
    spec = classifier_spec(recipe, HEADS)
    model = randomized(replace(spec, model=replace(spec.model, pooling="mean-change")).build())
    with torch.no_grad():
        model.encoder.position.temporal.zero_()
    return model


def by_pairs(recipe: Recipe, features: str = "images") -> Classifier:
    data = recipe.data
    spec = PixelSpec(frames=data.frames, size=data.frame_size, pixels=data.pixels, heads=HEADS)
    return randomized(replace(spec, features=features).build(), 0.01 if features == "images" else 1)


def of_logits(recipe: Recipe) -> Classifier:
    return MeanClassifier.of([by_frames(recipe), by_pairs(recipe, "motion")], mean_of="logits")


def of_outputs(recipe: Recipe) -> Classifier:
    return MeanClassifier.of([of_logits(recipe), by_pairs(recipe)])


def by_clips(recipe: Recipe) -> Classifier:
    """An encoder with attention over the whole clip."""
    spec = classifier_spec(recipe, HEADS)
    return randomized(replace(spec, model=replace(spec.model, attention="joint")).build())


MODELS = {made.__name__: made for made in (by_frames, by_pairs, of_logits, of_outputs, by_clips)}


@pytest.fixture(scope="module")
def loaded(recipe: Path) -> Recipe:
    return load_recipe(recipe, overrides=[*SPREAD, *FRAMES])


def opened(make: Callable[[Recipe], Classifier], recipe: Recipe, *, crops: int = 1, **data) -> OpenedModel:
    torch.manual_seed(0)
    module = make(recipe)
    module.recipe = replace(recipe, data=replace(recipe.data, **data))
    return OpenedModel.of(module, clips=2 if crops > 1 else 1, crops=crops)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with a variable frame rate, 1.1 s."""
    frames = np.random.default_rng(0).integers(0, 256, (len(TIMES), 48, 64, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("uneven") / "uneven.mp4"
    return write_frames(path, frames, codec="libx264", rate=48, times=TIMES.tolist())


Result = tuple[Window, dict[str, torch.Tensor]] | Unreadable


def over_windows(
    model: OpenedModel, sample: Sample, batching: Batching, done: Sequence[Unreadable | None] = ()
) -> list[Result]:
    compute = PieceModel.of_outputs(model)
    return [*chain(*compute_over_windows(model, sample, compute, batching, done=done))]


def one_by_one(model: OpenedModel, path: str, results: Sequence[Result]) -> None:
    """Compare windows with videos of their own."""
    windows = [result for result in results if not isinstance(result, Unreadable)]
    assert windows
    for window, values in windows:
        alone = Sample(path=path, start=window.start, end=window.end)
        views = model.views(alone, np.random.default_rng(), "auto").frames
        expected = model.outputs(views)["outputs"]
        torch.testing.assert_close(values["outputs"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("window", "step", "batch"), [(1.0, 0.25, 1), (1.0, 0.5, 3), (0.7, 0.3, 2), (0.5, 0.5, 1), (5.0, 1.0, 1)]
)
def test_outputs_are_those_of_windows_one_by_one(loaded, clip_files, name, window, step, batch):
    model = opened(MODELS[name], loaded)
    video = str(clip_files / "clip3.mp4")
    batching = Batching(window=window, step=step, batch=batch).on_grid(model)
    one_by_one(model, video, over_windows(model, Sample(path=video), batching))


@pytest.mark.parametrize("name", ["of_outputs", "by_clips"])
@pytest.mark.parametrize(
    ("fps", "sampling", "crops"),
    [(None, "segment", 1), (None, "spread", 3), (10, "spread", 1), (8, "dense", 3)],
)
def test_they_are_with_other_samplings_rates_and_views(
    loaded: Recipe, clip_files: Path, uneven: Path, name: str, fps: float | None, sampling: str, crops: int
):
    recipe = replace(loaded, finetune=replace(loaded.finetune, sampling=sampling))
    model = opened(MODELS[name], recipe, crops=crops, fps=fps)
    for video in (str(clip_files / "clip1.mp4"), str(uneven)):
        batching = Batching(window=0.6, step=0.2).on_grid(model)
        one_by_one(model, video, over_windows(model, Sample(path=video), batching))


@pytest.mark.parametrize("name", MODELS)
def test_damage_takes_the_windows_that_it_touches_and_a_resume_changes_no_bit(
    loaded: Recipe, clip_files: Path, tmp_path: Path, name: str
):
    model = opened(MODELS[name], loaded)
    hole = with_hole(clip_files / "clip2.mp4", 0.7, tmp_path / "hole.mp4")
    batching = Batching(window=0.5, step=0.125, batch=2)
    results = over_windows(model, Sample(path=str(hole)), batching)
    problems = [result for result in results if isinstance(result, Unreadable)]
    assert [problem.is_window for problem in problems][-1] is False
    assert any(problem.is_window for problem in problems)
    one_by_one(model, str(hole), results)
    done = [result if isinstance(result, Unreadable) else None for result in results]
    for number in range(0, len(results), 2):
        rest = over_windows(model, Sample(path=str(hole)), batching, done[:number])
        for found, expected in zip(rest, results[number:], strict=True):
            if isinstance(expected, Unreadable):
                assert found == expected
            else:
                assert torch.equal(found[1]["outputs"], expected[1]["outputs"])


@pytest.mark.parametrize(("name", "size"), [("by_frames", 1), ("by_pairs", 2), ("by_clips", 4)])
def test_each_frame_pair_or_clip_is_encoded_once(loaded, clip_files, monkeypatch, name, size):
    model = opened(MODELS[name], loaded)
    compute = PieceModel.of_outputs(model)
    (encoder,) = compute.encoders
    assert encoder.frames == size
    encoded = []

    def counting(pieces: torch.Tensor) -> dict[str, torch.Tensor]:
        encoded.extend(piece.numpy().tobytes() for piece in pieces)
        return encoder.encode(pieces)

    counted = replace(compute, encoders=[encoder._replace(encode=counting)])
    sample, batching = Sample(path=str(clip_files / "clip3.mp4")), Batching(window=1.0, step=0.25)
    windows = [*chain(*compute_over_windows(model, sample, counted, batching))]
    assert len(windows) == 5
    # At 16 frames a second, the frames of a clip are 4 apart: those of a window after the first bring one.
    assert len(set(encoded)) == len(encoded) == {1: 4 + 4, 2: 3 + 4, 4: 5}[size]


def test_segments_that_share_frames_have_the_features_of_clips_and_a_resume_changes_no_bit(
    loaded: Recipe, clip_files: Path, tmp_path: Path
):
    models = {name: opened(make, loaded) for name, make in MODELS.items() if not name.startswith("of")}
    first, pieces = models["by_frames"], PieceModel.of_feature_vectors(models)
    hole = str(with_hole(clip_files / "clip2.mp4", 0.7, tmp_path / "hole.mp4"))
    starts = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 9.0]  # seconds; the last is after the end
    paths = (str(clip_files / "clip3.mp4"), hole, str(tmp_path / "missing.mp4"))
    samples = [Sample(path=path, start=at, end=at + 0.5) for path in paths for at in starts]

    @torch.inference_mode()
    def features(clips: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: model.classifier.features(model.normalize(clips)).float() for name, model in models.items()
        }

    batching = Batching(batch=4)
    parts = batching.divide(range(len(samples)))
    clips = compute_over_videos(first.dataset(samples), parts, features, train=loaded.train, emit=print)
    found = [*compute_over_segments(first, samples, pieces, batching)]
    assert 0 < sum(isinstance(each, Unreadable) for each in found[7:14]) < 7
    for expected, each in zip(chain(*clips), found, strict=True):
        if isinstance(expected, Unreadable):
            assert isinstance(each, Unreadable)
        else:
            torch.testing.assert_close(each, expected, atol=1e-6, rtol=0)
    for done in range(len(samples)):
        rest = [*compute_over_segments(first, samples, pieces, batching, done=done)]
        for expected, each in zip(found[done:], rest, strict=True):
            if isinstance(expected, Unreadable):
                assert each == expected
            else:
                assert all(torch.equal(each[name], values) for name, values in expected.items())


def test_windows_begin_on_the_grid_of_the_frames_of_their_clips(loaded: Recipe):
    views = EvalViews(frames=8, stride=1, size=(32, 32), clips=1, crops=1, sampling="spread")
    assert [step_on_grid(views, window=2.0, step=step) for step in (0.01, 0.3, 0.5, 2.0)] == [
        0.25,
        0.25,
        0.5,
        2.0,
    ]
    assert step_on_grid(replace(views, sampling="dense"), window=2.0, step=0.3) == 0.3
    said = []
    model, whole = opened(by_frames, loaded), opened(by_clips, loaded)
    batching = Batching(window=1.0, step=0.3, emit=said.append)
    assert batching.on_grid(whole) is batching  # nothing of a clip is of use for another
    batching = batching.on_grid(model)
    assert batching.step == 0.25
    assert [event["text"] for event in said] == [
        "windows begin every 0.25 s, not 0.3 s: the frames of a clip are 0.25 s apart"
    ]
    assert batching.on_grid(model).step == 0.25
    assert len(said) == 1


def test_frames_of_overlapping_windows_coincide_between_frames_of_the_file(tmp_path: Path):
    """At 15 frames a second, a window of 2 s every 0.5 s begins between two frames."""
    from everest.data.footage import read_footages
    from everest.inference.windows import windows_of

    frames = np.zeros((75, 16, 16, 3), np.uint8)
    path = write_frames(tmp_path / "even.mp4", frames, codec="libx264", rate=15)
    views = EvalViews(frames=8, stride=1, size=(16, 16), clips=1, crops=1, sampling="spread")
    windows = windows_of(Sample(path=str(path)), views, window=2.0, step=0.5)
    footages = read_footages(Sample(path=str(path)).video, [window.span for window in windows], None)
    clips = [views.clip_frame_ids(footage)[0].tolist() for footage in footages]
    assert clips[0] == [1, 5, 9, 13, 16, 20, 24, 28]
    for earlier, later in pairwise(clips):
        assert later[:6] == earlier[2:]
