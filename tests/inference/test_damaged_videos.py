import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from small_runs import called, json_of
from video_kinds import COUNT, RATE, Case, write_case


def written(folder: Path, container: str, codec: str, accident: str) -> Path:
    case = Case(container=container, codec=codec, accident=accident)
    return write_case(case, folder / f"video.{container}").path


@pytest.mark.parametrize(
    ("container", "accident", "until"),
    [("ts", "lost packet at 0.45", COUNT / RATE), ("mp4", "cut at 0.77", None), ("mkv", "cut at 0.77", None)],
)
def test_a_timeline_goes_on_after_a_damage(classifier_run, tmp_path, container, accident, until):
    file = written(tmp_path, container, "h264-b", accident)
    command = ["timeline", file, "-c", classifier_run, "--window", 0.2]
    (row,) = json_of(*command, code=4)
    assert row["error"].startswith("damaged: no intact frames from ")
    assert len(row["windows"]) >= 2
    if until is not None:
        assert row["windows"][-1]["end"] == pytest.approx(until, abs=0.01)
    shown = called(*command, code=4)
    assert f"{file}: damaged: no intact frames from" in shown.stderr
    assert shown.stdout.splitlines()[-1] == f"  {row['error']}"


def test_joined_streams_have_a_whole_timeline(classifier_run: Path, tmp_path: Path):
    file = written(tmp_path, "ts", "h264-b", "joined")
    (row,) = json_of("timeline", file, "-c", classifier_run, "--window", 0.4)
    assert "error" not in row
    assert row["windows"][-1]["end"] == pytest.approx(2 * COUNT / RATE, abs=0.01)


def test_the_windows_before_and_after_a_damage_have_features(autoencoder_run: Path, tmp_path: Path):
    file, out = written(tmp_path, "ts", "h264-b", "lost packet at 0.45"), tmp_path / "f.safetensors"
    result = called("extract", file, "-c", autoencoder_run, "--window", 0.2, "-o", out, code=4)
    assert f"{file}: damaged: no intact frames from" in result.stderr
    ends = load_file(out)["ends"].numpy()
    assert np.all(np.diff(ends) > 0)
    assert ends[-1] == pytest.approx(COUNT / RATE, abs=0.01)


def test_the_default_window_of_a_browser_video_is_a_clip(classifier_run: Path, tmp_path: Path):
    file = written(tmp_path, "webm", "vp9", "states 1000 frames per second")
    first, *_ = json.loads(called("timeline --json", file, "-c", classifier_run).stdout)
    lengths = [window["end"] - window["start"] for window in first["windows"]]
    assert max(lengths) > 0.3
