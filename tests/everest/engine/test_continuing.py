import shutil
from pathlib import Path

import pytest
from small_runs import RECIPE, called, contents, equal, metrics, sets, weights

from everest.config.run_options import RunOptions
from everest.system.run_folder import RunFolder

EPOCHS = 3  # of RECIPE, each of one step


@pytest.fixture
def command(recipe: Path, tmp_path: Path) -> list[str]:
    return ["pretrain", "--recipe", str(recipe), "-o", str(tmp_path / "run"), "-q"]


@pytest.fixture
def finished(autoencoder_run: Path, tmp_path: Path) -> Path:
    """What the command has trained."""
    return Path(shutil.copytree(autoencoder_run, tmp_path / "run"))


def everest(command: list[str], *options: object, code: int = 0) -> str:
    return called(*command, *options, code=code).stderr


def states(run: Path) -> list[Path]:
    return sorted((run / "state").glob("step-*.safetensors"))


def test_missing_weights_of_a_finished_run_are_written_again_and_missing_states_are_not(command, finished):
    before, other = weights(finished), finished / "state" / "step-8-backup.safetensors"
    other.write_bytes(b"precious")  # no state
    (finished / "model.safetensors").unlink()
    everest(command)
    assert equal(weights(finished), before)
    assert other.read_bytes() == b"precious"
    shutil.rmtree(finished / "state")
    files = contents(finished)
    everest(command)
    assert contents(finished) == files


def test_weights_without_a_state_are_not_replaced(command, finished):
    longer = [*command, "--set", f"pretrain.epochs={EPOCHS + 1}", "--overwrite"]
    everest(longer)
    for state in states(finished):
        state.unlink()
    unfinished = finished / "model.safetensors"
    everest([*command, "--overwrite"])  # fewer steps: the weights of a stopped run
    short = unfinished.read_bytes()
    everest(longer)
    shutil.rmtree(finished / "state")
    unfinished.write_bytes(short)
    shown = everest(longer[:-1], code=6)
    assert f"weights of step {EPOCHS} of {EPOCHS + 1}, but no state to resume from" in shown
    assert unfinished.read_bytes() == short


def test_some_settings_may_change_and_a_new_one_does_not_orphan_the_run(command, finished):
    text = (finished / "recipe.yaml").read_text()
    assert "  decoder: auto\n" in text
    text = text.replace("  decoder: auto\n", "").replace("summary: ", "summary: as it was before, ")
    assert "as it was before" in text
    (finished / "recipe.yaml").write_text(text)
    everest(command)
    changed = ("train.workers=1", "train.save_every=7")  # how it reads and saves
    everest(command, *sets(*changed))
    assert "pretrain.epochs (3, now 5)" in everest(command, "--set", "pretrain.epochs=5", code=2)
    shown = everest(command, "--set", "train.seed=5", code=2)
    assert "train.seed (0, now 5); use its values" in shown


def test_videos_may_move_as_a_whole(command, finished, videos: Path):
    moved = videos.rename(videos.with_name("elsewhere"))
    everest(command, "--data", moved)
    videos.symlink_to(moved)
    everest(command, "--data", videos)


def test_a_run_of_one_batch_is_another_run(command, finished):
    assert "overfit-one-batch (false, now true)" in everest(command, "--overfit-one-batch", code=2)
    everest(command, "--overfit-one-batch", "--overwrite")
    assert "overfit-one-batch (true, now false)" in everest(command, code=2)


def test_a_list_with_other_videos_or_classes_in_other_places_is_another_run(recipe, videos, tmp_path):
    rows = [f"clip{i}.mp4,{name}" for i, name in enumerate(["run", "walk"] * 2)]
    (videos / "train.csv").write_text("\n".join(rows))
    options = ["--recipe", recipe, "--data", videos, "-o", tmp_path / "run"]
    everest(["finetune --init none -q", *options])
    shutil.copy(videos / "clip0.mp4", videos / "new.mp4")
    (videos / "train.csv").write_text("\n".join(["new.mp4,run", *rows[1:]]))
    assert "another list of 4 videos" in everest(["finetune --init none -q", *options], code=2)
    (videos / "train.csv").write_text("\n".join(rows).replace("walk", "amble"))  # sorts before run
    assert "or other labels" in everest(["finetune --init none -q", *options], code=2)


def test_resume_of_a_folder_leaves_no_room_for_another(command, finished):
    shown = everest(command, "--resume", str(finished), code=2)  # command has an --output
    assert "leave out --output and --overwrite" in shown


def test_overwrite_spares_what_the_run_reads_and_what_no_run_has_written(command, recipe, tmp_path: Path):
    project = tmp_path / "project"
    project.mkdir()
    own = project / "recipe.yaml"
    own.write_text(f"# by hand\n{RECIPE}")
    there = [str(own) if part == str(recipe) else part for part in command]
    there[there.index(str(tmp_path / "run"))] = str(project)
    assert f"would remove {own}, which the run reads" in everest(there, "--overwrite", code=2)
    assert own.read_text().startswith("# by hand")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "env.json").write_text('{"of": "something else"}')
    assert "which no run has written" in everest(command, "--overwrite", code=2)


def test_overwrite_removes_nothing_before_all_is_checked(command, finished, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("everest.engine.context.find_spec", lambda name: None)
    before = contents(finished)
    shown = everest(command, "--overwrite", "--tracker", "wandb", code=5)
    assert "pip install wandb" in shown
    assert contents(finished) == before


def test_runs_of_the_same_second_have_their_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("everest.config.run_options.time.strftime", lambda form: "20260101-000000")
    options = RunOptions(stage="pretrain", recipe_file="ucf101")
    options.folder("ucf101").mkdir(parents=True)
    assert options.folder("ucf101").name == "ucf101-20260101-000000-2"


def test_a_validation_that_fails_costs_no_epoch_and_is_repeated(recipe: Path, videos: Path, tmp_path: Path):
    folder = tmp_path / "run"
    command = ["finetune --init none -q", "--recipe", recipe, "--data", videos, "-o", folder]
    (videos / "val.csv").write_text("\n".join(f"broken{i}.mp4 {i % 2}" for i in range(8)))
    for i in range(8):
        (videos / f"broken{i}.mp4").write_text("no video")
    everest(command, "--set", "data.val=val.csv", code=4)
    assert len(states(folder)) == 1
    for i in range(8):
        shutil.copy(videos / f"clip{i % 4}.mp4", videos / f"broken{i}.mp4")
    everest(command, "--set", "data.val=val.csv")
    rows = RunFolder(folder).rows()
    assert [row["step"] for row in rows if "val_top1" in row] == [1, 2, 3]
    assert (folder / "best.safetensors").is_file()


@pytest.fixture
def resumed(tmp_path: Path, recipe: Path):
    """Trains with a tracker, forgets the last step, and resumes with the same tracker."""

    def train(tracker: str) -> Path:
        run = tmp_path / "run"
        command = ["pretrain", "--recipe", recipe, "-o", run, "-q"]
        called(*command, "--tracker", tracker)
        newest = sorted((run / "state").glob("step-*"))[-1]
        newest.unlink()
        (run / "model.safetensors").unlink()
        called(*command, "--tracker", tracker)
        return run

    return train


def test_tensorboard_has_the_recipe_and_no_step_twice(resumed):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = resumed("tensorboard")
    folders = {file.parent for file in (run / "tensorboard").rglob("events.*")}
    assert len(folders) == 1
    read = accumulator.EventAccumulator(str(folders.pop()))
    read.Reload()
    logged = {event.step: event.value for event in read.Scalars("loss")}
    assert logged == pytest.approx({row["step"]: row["loss"] for row in metrics(run) if "loss" in row})
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3]
    (text,) = read.Tensors("recipe/text_summary")
    assert "base_lr: 0.1" in text.tensor_proto.string_val[0].decode()


def test_wandb_continues_its_run_with_the_recipe(resumed, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = resumed("wandb")
    tracker = RunFolder(run).read_environment().tracker
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2  # of one run: `wandb sync` joins them by the id
    assert {folder.name.rsplit("-", 1)[1] for folder in folders} == {tracker and tracker["id"]}
