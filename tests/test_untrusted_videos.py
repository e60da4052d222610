"""Commands on videos that are fine, but whose titles are not UTF-8."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from small_runs import called, small_recipe

TITLE = b"title of eighteen."


@pytest.fixture(scope="module")
def latin_clips(tmp_path_factory: pytest.TempPathFactory, clip_files: Path) -> Path:
    """The videos and the list of `clip_files`; the videos have a title in Latin-1."""
    folder = tmp_path_factory.mktemp("latin")
    for file in clip_files.glob("*.mp4"):
        target = folder / file.name
        with av.open(str(file)) as source, av.open(str(target), "w") as container:
            container.metadata["title"] = TITLE.decode()
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
        content = target.read_bytes()
        assert content.count(TITLE) == 1
        target.write_bytes(content.replace(TITLE, "Köln, Café, été 18".encode("latin-1")))
    (folder / "train.csv").write_bytes((clip_files / "train.csv").read_bytes())
    return folder


COMMANDS = {
    "pretrain": ("--recipe", "RECIPE", "-q", "-o", "OUT"),
    "predict": ("VIDEOS", "-c", "RUN", "--cpu"),
    "extract": ("VIDEOS", "-c", "RUN", "--cpu", "-o", "OUT.npz"),
    "visualize-mask": ("VIDEOS", "--frames", "4", "--size", "32", "-o", "OUT"),
    "select-frames": ("VIDEOS", "--frames", "4", "--size", "32"),
    "prepare stats": ("VIDEOS/train.csv", "--workers", "1"),
    "prepare check": ("VIDEOS/train.csv", "--workers", "1", "-o", "OUT"),
    "prepare encode": ("VIDEOS/train.csv", "--workers", "1", "-o", "OUT"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_title_in_latin_1_ends_no_command(
    command: str, latin_clips: Path, classifier_run: Path, tmp_path: Path
):
    given = {
        "RECIPE": small_recipe(tmp_path, latin_clips),
        "VIDEOS": latin_clips,
        "RUN": classifier_run,
        "OUT": tmp_path / "out",
    }
    arguments = command.split()
    for text in COMMANDS[command]:
        for name, value in given.items():
            text = text.replace(name, str(value))
        arguments.append(text)
    called(*arguments)
