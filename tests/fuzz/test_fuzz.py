"""No damaged input ends a command with a traceback, a crash, a hang, or with other files changed."""

import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from .case import CaseId
from .cases_videos import damage_boxes, join_boxes, split_boxes
from .mutations import damage_bytes, damage_text, damage_tree
from .outcome import traceback_end
from .safetensors_file import join_file, split_file

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*arguments: object, keep: Path) -> str:
    """The summary of `python -m tests.fuzz`: no case may fail."""
    command = [sys.executable, "-m", "tests.fuzz", "--keep", keep, *arguments]
    ended = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_damaged_input_of_every_kind_is_refused(tmp_path: Path):
    *kinds, _ = fuzz("--cases", 250, "--workers", 1, keep=tmp_path).splitlines()
    assert len(kinds) == 9
    assert all(re.search(r"[2456]: \d", line.partition("exit codes")[2]) for line in kinds)


@pytest.mark.slow
def test_damaged_input_of_every_kind_is_refused_in_full(tmp_path: Path):
    assert re.search(r"0 of 1\d{4} cases fail", fuzz("--seed", 1, keep=tmp_path))


def test_a_case_depends_on_kind_seed_and_index_alone():
    damages = (
        lambda rng: damage_bytes(rng, b"abcd" * 9),
        lambda rng: damage_text(rng, "a b\nc d\n"),
        lambda rng: damage_tree(rng, {"a": [1, {}]}),
    )
    for damage in damages:
        first, again = ([repr(damage(CaseId("x", 0, n).rng())) for n in range(50)] for _ in range(2))
        assert first == again
        assert len(set(first)) > 25


def test_a_file_taken_apart_is_put_together_again():
    header = {"__metadata__": {"step": "1"}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    assert split_file(join_file(header, b"1234")) == (header, b"1234")
    boxes = [(b"ftyp", b"isom"), (b"moov", join_boxes([(b"mvhd", b"0123")]))]
    assert split_boxes(join_boxes(boxes)) == boxes
    assert join_boxes(damage_boxes(Random(1), split_boxes(join_boxes(boxes)))) != join_boxes(boxes)


def test_a_traceback_is_known_by_its_innermost_own_line():
    stderr = (
        "Traceback (most recent call last):\n"
        '  File "/x/everest_cli/main.py", line 160, in main\n    app()\n'
        '  File "/x/everest/lists/shards.py", line 68, in read_index\n    sample.items()\n'
        '  File "/usr/lib/python3/json.py", line 5, in loads\n    raise\n'
        "AttributeError: 'int' object has no attribute 'items' 17\n"
    )
    assert traceback_end(stderr) == "everest/lists/shards.py:68 in read_index: AttributeError"
    assert traceback_end("error: my.yaml: unknown key") == ""
