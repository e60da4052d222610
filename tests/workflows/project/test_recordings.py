"""Projects of annotated recordings: their windows, groups and timelines."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from small_projects import FEW
from small_runs import called, json_of, refused

from everest.config.recipe import load_recipe
from everest.lists.reading import read_samples
from everest.lists.sources import LIST_FILES, seen_in
from everest.metrics.names import METRICS
from everest_workflows.annotations.bout import Bout
from everest_workflows.project.lists import check_animals, group_by_subject
from everest_workflows.project.request import Request
from everest_workflows.recordings import window_labels
from everest_workflows.recordings.timelines import Timelines


@pytest.fixture(scope="session")
def read_annotations() -> Mock:
    """Counts how often a file of annotations is read for `project`."""
    return Mock(wraps=window_labels.read_video_annotations)


@pytest.fixture(scope="session")
def project(recordings: Path, read_annotations: Mock, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project of the recordings, in a folder that is reached by a link."""
    link = tmp_path_factory.mktemp("annotated") / "link"
    link.symlink_to(tmp_path_factory.mktemp("target"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_labels, "read_video_annotations", read_annotations)
        annotations = ["--annotations", recordings.with_name("bouts.csv")]
        called("train", recordings, *annotations, "-o", link / "project", *FEW)
    return link / "project"


@pytest.fixture(scope="session")
def result(project: Path) -> dict[str, Any]:
    return json.loads((project / "result.json").read_text())


def test_the_plan_names_what_is_left_out_of_the_annotations(recordings: Path, tmp_path: Path):
    header, *rows = recordings.with_name("bouts.csv").read_text().split()
    noted = [f"{header},subject", *(f"{row},m{i % 2}" for i, row in enumerate(rows)), "r0.mp4,0,1,,m0"]
    (tmp_path / "noted.csv").write_text("\n".join(noted))
    plan = json_of("train", recordings, "--annotations", tmp_path / "noted.csv", "--dry-run", *FEW)
    assert plan["left_out"] == [{"reason": "row without a label", "count": 1}]
    assert {
        "left out of the annotations: row without a label (1)",
        "bouts of 2 subjects (m0, m1) are taken together; see --subject",
    } <= set(plan["lines"])


def test_annotated_recordings_give_timelines(recordings: Path, project: Path, result: dict[str, Any]):
    scores = result["timelines"]
    assert {"frame_accuracy", "f1@50"} <= scores.keys()
    assert 0 <= scores["mean_class_accuracy"] <= 100
    (video,) = (saved := Timelines.load(scores["timeline"])).videos
    assert scores["recordings"] == [video.video]
    assert Path(video.path).parent == recordings
    rows = json_of("timeline", video.path, "-c", project)
    assert [each["windows"] for each in rows] == [each["windows"] for each in saved.to_rows()]


def test_recordings_of_a_moved_project_are_found_in_its_lists(project: Path, tmp_path: Path):
    copy = shutil.copytree(project, tmp_path / "copy")
    data = load_recipe(copy / "model" / "recipe.yaml").data
    assert Path(data.root) == copy / "lists"
    assert Path(str(data.train)) == copy / "lists" / "train.csv"
    listed = read_samples(copy / "lists" / "train.csv", root=copy / "lists").samples
    assert len(seen_in(data, "train", listed)) == len(listed) > 0  # as `timeline` asks


def test_the_methods_and_the_page_are_about_windows(result: dict[str, Any]):
    assert re.search(
        r"^Windows of 1 s every 0\.5 s \(16 frames\) were classified by (the mean of )?a linear .*\. On 11 "
        r"windows of 1 group held out of training and choice, accuracy was .*\. Baselines: chance .*, a "
        r"linear model on small images .*\. With probabilities averaged over .*, frame "
        r"accuracy was .*\. Software: everest ",
        result["methods"],
    )
    page = Path(result["report"]).read_text()
    assert 'alt="predictions and labels over time"' in page
    assert f"<th>{METRICS[result['metric']].title}</th>" in page


def test_the_windows_of_a_recording_are_in_one_list(project: Path):
    data = load_recipe(project / "recipe.yaml").data
    assert Path(data.root).samefile(project / "lists")
    listed = [read_samples(Path(getattr(data, name)), root=Path(data.root)).samples for name in LIST_FILES]
    assert [len({sample.path for sample in samples}) for samples in listed] == [2, 1, 1]
    assert all((sample.end or 0) - (sample.start or 0) <= 1 for sample in listed[0])


def test_annotations_are_read_once_for_the_lists_and_once_for_the_timelines(result, read_annotations):
    assert read_annotations.call_count == 2


def test_annotations_of_other_videos_are_refused(recordings: Path, tmp_path: Path):
    other = tmp_path / "other.csv"
    other.write_text("video,start,end,label\nz.mp4,0,1,down\n")
    message = refused("train", recordings, "--annotations", other, "-o", tmp_path / "other", code=4)
    assert "annotates none of these videos; it names z.mp4" in message
    assert not (tmp_path / "other").exists()


def test_changed_annotations_are_noticed(recordings: Path, tmp_path: Path):
    bouts = Path(shutil.copy(recordings.with_name("bouts.csv"), tmp_path))
    project = tmp_path / "project" / "project.json"
    request = Request(videos=str(recordings), annotations=[str(bouts)])
    project.parent.mkdir()
    project.write_text(json.dumps({"request": asdict(request), "files": request.checksums()}))
    bouts.write_text(f"{bouts.read_text()}r0.mp4,5.5,6,down\n")
    command = ("train", recordings, "--annotations", bouts, "-o", project.parent)
    assert f"{bouts}: has changed since the project" in refused(*command, code=2)
    shown = called(*command, "--overwrite", "--dry-run", *FEW)
    plan = r"test: \d+ windows of 1 video \(r\d\)\n3 .*\n4 groups: r0, r1, r2, …\n\d+ .*'background'"
    assert re.search(plan, shown.stdout)


def _bouts(**subject_of: str) -> dict[str, list[Bout]]:
    return {
        f"/v/{name}.mp4": [Bout(video=name, start=0, end=1, label="up", subject=subject)]
        for name, subject in subject_of.items()
    }


@pytest.mark.parametrize(
    ("subject_of", "warning"),
    [
        ({"m1_day1": "", "m1_day2": "", "m2_day1": ""}, r"m1_day1.mp4, m1_day2.mp4 .*'\^\(\[\^\\W_\]\+\)'"),
        ({"0103_m1": "", "0104_m1": "", "0105_m2": ""}, r"0103_m1.mp4, 0104_m1.mp4 may .*--group '\(\["),
        ({"r0": "", "r1": "", "r2": ""}, None),
        ({"rec_1": "", "rec_2": ""}, None),
        ({"___": "", "-": ""}, None),
        ({"_a_1": "", "_a_2": "", "_b_1": ""}, None),
        ({"2024-01": "", "2024-02": "", "2025-01": ""}, None),
        ({"a": "m1", "b": "m2", "c": "m1"}, "a.mp4, c.mp4 share subjects; .*--group subject"),
        ({"a": "m1", "b": "m1"}, "not new animals"),
        ({"a": "m1", "b": "m2"}, None),
    ],
)
def test_recordings_that_seem_to_show_one_animal_are_named(subject_of, warning):
    found = check_animals(_bouts(**subject_of))
    assert found is None if warning is None else re.match(f"{warning}|.*{warning}", found or "")


def test_recordings_that_share_a_subject_are_one_group():
    bouts = _bouts(a="m1", b="m2", c="m3", d="", e="m4")
    bouts["/v/b.mp4"] += _bouts(b="m3")["/v/b.mp4"]
    groups = group_by_subject(bouts)
    assert groups["/v/b.mp4"] == groups["/v/c.mp4"] == "m2+m3"
    assert len(set(groups.values())) == 4


def test_group_subject_keeps_the_recordings_of_an_animal_together(recordings, class_folders, tmp_path):
    header, *rows = recordings.with_name("bouts.csv").read_text().split()
    animal = {"r0": "m1", "r1": "m2", "r2": "m1", "r3": "m3"}
    noted = [f"{header},subject", *(f"{row},{animal[row.partition('.')[0]]}" for row in rows)]
    (tmp_path / "noted.csv").write_text("\n".join(noted))
    command = ("train", recordings, "--annotations", tmp_path / "noted.csv", "--dry-run", *FEW)
    assert "--group subject" in called(*command).stderr
    shown = called(*command, "--group", "subject")
    assert "--group subject" not in shown.stderr
    assert re.search("3 groups: ", shown.stdout)
    plain = recordings.with_name("bouts.csv")
    without = ("train", recordings, "--annotations", plain, "--dry-run", *FEW, "--group", "subject")
    assert "no annotation names a subject" in refused(*without, code=4)
    column = refused(*without[:-1], "column:animal", code=2)
    assert "--group column:animal: annotations have no columns; give 'subject' or a pattern" in column
    assert "needs --annotations" in refused("train", class_folders, "--group", "subject", code=2)
