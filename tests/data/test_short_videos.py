from dataclasses import replace
from pathlib import Path

from small_runs import called

from everest.config.recipe import load_recipe
from everest.data.recipe_clips import examine_lengths, pretrain_clips
from everest.lists.reading import read_unlabeled


def test_short_videos_are_reported_once(tmp_path: Path, recipe: Path):
    notice = "4 of 4 videos (100%) are shorter than a clip of 4 frames at stride 9: frames are repeated"
    for stride in (8, 9):
        options = ["--recipe", recipe, "--set", f"pretrain.stride={stride}", "-o", tmp_path / str(stride)]
        shown = called("pretrain", *options).stderr
        assert shown.count("shorter than a clip") == shown.count(notice) == (stride == 9)
        assert "shorter than a clip" not in called("pretrain", *options).stderr  # the finished run is resumed


def test_videos_of_which_none_can_be_read_end_the_run_before_it_writes_a_folder(tmp_path: Path, recipe: Path):
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_text("no video")
    (tmp_path / "broken.csv").write_text("".join(f"{tmp_path / f'{i}.mp4'}\n" for i in range(3)))
    options = ["--recipe", recipe, "--set", f"data.train={tmp_path / 'broken.csv'}", "-o", tmp_path / "run"]
    shown = called("pretrain", *options, code=4).stderr
    assert f"none of the 3 videos examined can be read, first {tmp_path}/" in shown
    assert "not a video file" in shown
    assert not (tmp_path / "run").exists()


def test_short_windows_are_called_windows(tmp_path: Path, clip_files: Path):
    rows = [f"{clip_files}/clip{number}.mp4,0,0.5" for number in range(4)]
    (tmp_path / "windows.csv").write_text("\n".join(["path,start,end", *rows]))
    samples = read_unlabeled(tmp_path / "windows.csv", root=tmp_path).samples
    clips = pretrain_clips(load_recipe("small", overrides=["pretrain.stride=2", f"data.root={clip_files}"]))
    notice = examine_lengths(replace(clips, samples=samples)) or ""
    assert notice.startswith("4 of 4 windows (100%) are shorter than a clip")
