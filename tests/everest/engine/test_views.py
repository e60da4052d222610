from pathlib import Path

import pytest
import torch
from processes import TWO, assert_resumes_after_a_kill, everest
from small_runs import called, logged, refused, run, sets, weights
from torch import Tensor

from everest import load_model
from everest.config.recipe import load_recipe
from everest.data.recipe_clips import pretrain_dataset
from everest.engine import health
from everest.engine.health import COLLAPSED_STEPS, CollapseWatch
from everest.errors import DivergedError
from everest.models.spec import pretrain_spec
from everest.models.view_model import ViewModel

VIEWS = sets("pretrain.objective=views", "pretrain.selection.strategy=sampled")
CAMERA = sets("pretrain.camera_motion=0.5")


def test_two_processes_with_half_the_batch_each_equal_one(recipe: Path, tmp_path: Path):
    options = ["--recipe", recipe, *VIEWS, *CAMERA, *sets("pretrain.epochs=10", "pretrain.batch_size=8")]
    run("pretrain", *options, "-o", tmp_path / "one", "--gpus", "cpu")
    everest("pretrain", *options, "-o", tmp_path / "two", *TWO)
    for name in ("loss", "grad_norm", "view_spread", "camera_loss"):
        one, two = (logged(tmp_path / folder, name) for folder in ("one", "two"))
        assert len(one) == 10
        assert two == pytest.approx(one, abs=1e-3 if name == "grad_norm" else 1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max((two[name] - one[name]).abs().max() for name in one) < 1e-2  # Adam enlarges small differences


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(recipe: Path, tmp_path: Path):
    command = ["pretrain", *VIEWS, *CAMERA, *sets("pretrain.epochs=40"), "--gpus", "cpu"]
    assert_resumes_after_a_kill(recipe, command, tmp_path, rows=5)


@pytest.fixture(scope="module")
def views_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views") / "run"
    called("pretrain", "--recipe", recipe, *VIEWS, *CAMERA, "-o", folder)
    return folder


def test_what_follows_takes_its_encoder(recipe: Path, views_run: Path, tmp_path: Path, clip_files: Path):
    video = clip_files / "clip0.mp4"
    model = load_model(views_run)
    assert isinstance(model, ViewModel)
    run("finetune", "--recipe", recipe, "--init", views_run, "-o", tmp_path / "classifier")
    autoencoder = called("pretrain", "--recipe", recipe, "--init", views_run, "-o", tmp_path / "pixels")
    assert "the decoder starts fresh" in autoencoder.stderr
    again = called("pretrain", "--recipe", recipe, *VIEWS, "--init", views_run, "-o", tmp_path / "again")
    assert "the projector is also kept" in again.stderr
    fresh = called("pretrain -r", recipe, *VIEWS, "--init", tmp_path / "pixels", "-o", tmp_path / "fresh")
    assert "the projector starts fresh" in fresh.stderr
    run("extract", video, "-c", views_run, "-o", tmp_path / "features.safetensors")


@pytest.mark.parametrize("options", [(), ("--decoder", "fresh")])
def test_projector_and_camera_layer_are_kept_unless_fresh(recipe, views_run, tmp_path, options):
    still = ("--set", "pretrain.base_lr=1e-12", "--set", "pretrain.min_lr=0")
    command = ("pretrain", "--recipe", recipe, *VIEWS, *CAMERA, *still, "--init", views_run, *options)
    shown = called(*command, "-o", tmp_path / "run").stderr
    kept = "starts fresh" if options else "is also kept"
    before, after = (weights(folder) for folder in (views_run, tmp_path / "run"))
    parts = {"projector": "projector.hidden", "layer that predicts a camera's motion": "camera_head"}
    for title, name in parts.items():
        assert f"the {title} {kept}" in shown
        same = torch.allclose(before[f"{name}.weight"], after[f"{name}.weight"], atol=1e-6)
        assert same == (not options)


def test_each_view_has_its_own_window_and_crop_and_the_mirror_of_its_video(recipe: Path):
    settings = ("pretrain.views.number=4", "pretrain.batch_size=8", "pretrain.flip=false")
    loaded = load_recipe(str(recipe), overrides=["pretrain.objective=views", *settings])
    clip = pretrain_dataset(loaded).read((0, 2))
    assert clip.frames.shape == (4, 3, 4, 32, 32)
    assert len({view.numpy().tobytes() for view in clip.frames}) == 4
    assert clip.inputs["videos"].tolist() == [2] * 4


def test_other_draws_of_a_video_are_no_negatives():
    settings = ["pretrain.objective=views", "data.size=32", "model.width=32"]
    model = pretrain_spec(load_recipe("small", overrides=settings)).build()
    frames = torch.randint(0, 256, (8, 3, 16, 32, 32), dtype=torch.uint8)
    noise = torch.rand(8, model.encoder.grid.num_tokens)

    def loss(videos: list[int]) -> Tensor:
        return model(frames, noise=noise, videos=torch.tensor(videos).repeat_interleave(2)).loss

    same = loss([7, 7, 7, 7])  # no video is wrong, so every other view of the own video is found
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert loss([0, 1, 2, 3]) > loss([0, 1, 0, 1]) > same


def test_projections_that_are_all_the_same_end_the_run():
    watch = CollapseWatch()
    low, high = {"step": 1, "view_spread": 0.001}, {"step": 2, "view_spread": 0.5}
    watch.add([low] * (COLLAPSED_STEPS - 1) + [high] + [low] * (COLLAPSED_STEPS - 1))
    with pytest.raises(DivergedError, match="collapsed"):
        watch.add([low])
    of_an_autoencoder = [{"step": step, "loss": 1.0} for step in range(2 * COLLAPSED_STEPS)]
    CollapseWatch().add(of_an_autoencoder)


def test_a_resumed_run_continues_the_count_of_collapsed_steps(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "MIN_SPREAD", 2.0)  # above every spread
    monkeypatch.setattr(health, "COLLAPSED_STEPS", 4)
    command = ["pretrain", "--recipe", recipe, *VIEWS, "-o", tmp_path / "run"]
    for _ in range(2):  # the second time from step 3
        assert "step 4: the features have collapsed" in refused(*command, code=3)


def test_one_video_is_no_list_to_compare(recipe: Path, clip_files: Path, tmp_path: Path):
    (tmp_path / "one.csv").write_text(f"{clip_files}/clip0.mp4\n")
    options = [*VIEWS, "--set", f"data.pretrain={tmp_path}/one.csv", "-o", tmp_path / "run"]
    shown = refused("pretrain", "--recipe", recipe, *options, code=4)
    assert "data.pretrain: one video; pretrain.objective=views compares several" in shown


def test_what_needs_a_decoder_refuses_a_model_without_one(recipe: Path, views_run: Path, tmp_path: Path):
    shown = refused("export", views_run, "--to", "hf", "-o", tmp_path / "hf", code=6)
    assert "an encoder alone" in shown
    options = [*VIEWS, "--init", views_run, "--decoder", "keep", "-o", tmp_path / "run"]
    assert "no decoder to keep" in refused("pretrain", "--recipe", recipe, *options, code=6)


def test_the_end_of_a_run_compares_its_metrics_with_guessing(recipe: Path, tmp_path: Path):
    given = [*VIEWS, *CAMERA, "--set", "pretrain.batch_size=8"]
    shown = called("pretrain", "--recipe", recipe, *given, "-o", tmp_path / "run-pretrain").stderr
    # One of seven other clips.
    assert "retrieve their own video within the batch (view_top1; chance 14%)" in shown
    assert "(guessing: 1)" in shown
    assert f"--init {tmp_path / 'run-pretrain'} --output {tmp_path / 'run-pretrain'}-finetune" in shown
    missing = refused("probe", "-c", tmp_path / "run-pretrain", "--set", "data.test=null", code=2)
    assert "data.test: not set; name a list or a folder of videos (--set data.test=train.csv takes" in missing
