from pathlib import Path

import numpy as np
import pytest
from small_runs import called, json_of, refused

from everest.config.heads import Head
from everest.lists.classes import Classes
from everest_workflows.recordings.timelines import Timelines, VideoTimeline

HEADER = "video,start,end,label,observer\n"
ANNA = "a.mp4,0,10,walk,anna\na.mp4,10,20,rear,anna\na.mp4,20,30,walk,anna\nb.mp4,0,5,walk,anna\n"
BEN = "a.mp4,0,12,walk,ben\na.mp4,12,20,rear,ben\na.mp4,26,30,walk,ben\n"


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    (tmp_path / "coded.csv").write_text(HEADER + ANNA + BEN)
    return tmp_path / "coded.csv"


def test_agreement_computed_by_hand(coded: Path):
    document = json_of("prepare annotations", coded, "--agreement")
    assert (document["observers"], document["videos"], document["seconds"]) == (["anna", "ben"], 1, 30)
    rear, walk = document["agreement"]
    # rear: both agree in 28 of 30 s; by chance in 10 / 30 * 8 / 30 + 20 / 30 * 22 / 30.
    assert rear["kappa"] == pytest.approx((28 / 30 - 520 / 900) / (1 - 520 / 900), abs=1e-4)
    assert (rear["behavior"], rear["bout_f1"], rear["seconds"]) == ("rear", 100, {"anna": 10, "ben": 8})
    assert (walk["bout_f1"], walk["seconds"]) == (50, {"anna": 20, "ben": 16})  # the last overlap is 40 %
    assert document["confusion"]["walk"] == {"rear": 0, "walk": 14, "background": 6}
    assert document["confusion"]["rear"] == {"rear": 8, "walk": 2, "background": 0}
    printed = called("prepare annotations", coded, "--agreement").stdout
    assert "anna and ben, 1 video, 30.0 s, kappa 0.52" in printed
    assert "seconds: rows anna, columns ben" in printed


def test_two_files_are_two_observers_and_unscored_time_does_not_count(tmp_path: Path):
    for name, rows in (("one", "a.mp4,0,10,walk\na.mp4,20,30,unscored\n"), ("two", "a.mp4,0,30,walk\n")):
        (tmp_path / f"{name}.csv").write_text(f"video,start,end,label\n{rows}")
    files = tmp_path / "one.csv", tmp_path / "two.csv"
    document = json_of("prepare annotations", *files, "--agreement")
    assert (document["observers"], document["seconds"]) == (["one", "two"], 20)
    assert document["agreement"][0]["kappa"] == 0
    refusal = refused("prepare annotations", files[0], "--agreement", code=4)
    assert "--agreement: one coded these videos; give the files of two, or choose two with --obs" in refusal


def test_overlapping_behaviors_have_kappas_and_no_confusion(coded: Path):
    with coded.open("a") as file:
        file.write("a.mp4,5,15,sniff,anna\na.mp4,5,15,sniff,ben\n")
    document = json_of("prepare annotations", coded, "--agreement")
    assert (document["kappa"], document["confusion"]) == (None, None)
    assert [row["kappa"] for row in document["agreement"] if row["behavior"] == "sniff"] == [1]


def test_a_timeline_agrees_with_each_observer(coded: Path, tmp_path: Path):
    starts, saved = np.arange(0.0, 30), tmp_path / "t.safetensors"
    is_rear = (starts >= 10) & (starts < 20)
    outputs = np.stack([is_rear, ~is_rear], axis=1).astype(np.float32)
    arrays = {"starts": starts, "ends": starts + 1, "outputs": outputs, "borders": np.arange(31.0)}
    video = VideoTimeline(video="a.mp4", path="a.mp4", frames=(0, 30), **arrays)
    classes = Classes(heads=(Head(outputs=2),), names=("rear", "walk"))
    Timelines(classes=classes, videos=[video]).save(saved)
    command = ["timeline", saved, "--truth", coded]
    assert "2 observations (anna, ben) differ in 'rear'; choose one" in refused(*command, code=4)
    document = json_of(*command, "--observer", "anna")
    kappas = {" ".join(pair["observers"]): pair["kappa"] for pair in document["agreement"]}
    assert kappas["anna model"] == 1
    assert kappas["ben model"] == kappas["anna ben"] < 1
    assert document["frame_accuracy"] == 100
    assert "anna and model, 1 video, 30.0 s, kappa 1.00" in called(*command, "--observer", "anna").stdout
    assert json_of(*command, "--observer", "ben")["frame_accuracy"] < 100
