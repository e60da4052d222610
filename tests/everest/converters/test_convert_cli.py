import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign import NARROW, saved, tiny
from hub_cache import CONFIG, transformers_folder
from safetensors.torch import save_file
from small_runs import called, json_of, refused, small_recipe

from everest.system.weights import read_weights

HEADS = ["--heads", "3,3"]


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    """A recipe for weights of `tiny`."""
    return small_recipe(tmp_path, clip_files, NARROW)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As transformers saves a classifier."""
    path = transformers_folder(tmp_path / "videomae-tiny")
    (path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# VideoMAE\n")
    return path


def convert(*arguments: object) -> tuple[str, str]:
    """The stdout and stderr of `everest convert`."""
    result = called("convert", *arguments)
    return result.stdout, result.stderr


def test_the_path_is_the_result_and_the_report_goes_to_stderr(tmp_path: Path):
    given = saved(tmp_path / "checkpoint-799.pth", tiny("videomae_pretrain_base"))
    out = tmp_path / "new" / "videomae.safetensors"
    printed, reported = convert(given, "--out", out, *HEADS)
    assert printed == f"{out}\n"
    assert {"family: videomae", "stage: pretrain"} <= set(reported.splitlines())
    assert "license: not stated" in reported
    assert convert(given, "--out", out, *HEADS, "--overwrite") == (printed, reported)
    origin = read_weights(out).origin
    assert (origin["family"], origin["file"], origin["fresh"]) == ("videomae", str(given), [])


def test_json_lists_the_fate_of_every_tensor(tmp_path: Path):
    state = tiny("mme_pretrain_base")
    given = saved(tmp_path / "mme.pth", state)
    out = tmp_path / "out.safetensors"
    document = json_of("convert", given, "--out", out, *HEADS, "--partial")
    assert document["used"] + len(document["unexpected"]) == len(state)
    assert document["written"] == str(out)
    assert (document["family"], document["stage"], document["kind"]) == ("videomae", "encoder", "pretrain")
    assert document["encoder"] == {"depth": 2, "width": 48, "heads": 3}
    assert "decoder.0.head.1.2.weight" in document["unexpected"]
    assert "decoder.head.weight" in document["missing"]


def test_inspect_prints_and_writes_nothing(tmp_path: Path, folder: Path):
    before = sorted(tmp_path.rglob("*"))
    lines = convert(folder, "--inspect")[0].splitlines()
    assert "family: transformers" in lines
    assert "license: cc-by-nc-4.0" in lines
    assert "num classes: 400" in lines
    document = json_of("convert", folder, "--inspect")
    assert document["convertible"] is True
    assert sorted(tmp_path.rglob("*")) == before


def test_a_size_may_be_height_and_width(tmp_path: Path):
    given = saved(tmp_path / "x.pth", tiny("videomae_pretrain_base"))
    assert json_of("convert", given, "--inspect", *HEADS, "--size", "64x96")["size"] == [64, 96]
    out = tmp_path / "out.safetensors"
    convert(given, "--out", out, *HEADS, "--size", "64x96", "--frames", "4")
    assert read_weights(out).settings["size"] == [64, 96]
    for text in ("64x", "0", "0x64", "64x-96", "64x96x3", "a", "64x99999", "[64, 96]", "9" * 5000):
        message = refused("convert", given, "--inspect", *HEADS, "--size", text, code=2)
        assert ": give a number of pixels, or HEIGHTxWIDTH" in message
        assert len(message.splitlines()) == 1
    message = refused("convert", given, "--inspect", *HEADS, "--size", "64x90", code=6)
    assert "a clip's width (90) must be a multiple of the tubelet's (16)" in message


def test_what_everest_wrote_needs_no_conversion(tmp_path: Path, folder: Path):
    out = tmp_path / "ours.safetensors"
    convert(folder, "--out", out)
    document = json_of("convert", out, "--inspect")
    assert (document["title"], document["kind"]) == ("written by everest", "classifier")
    assert document["origin"]["licence"] == "cc-by-nc-4.0"
    again = refused("convert", out, "--out", tmp_path / "again.safetensors", code=6)
    assert "written by everest; use it without conversion" in again
    origin = {"file": "a", "origin": {"family": "b"}}
    replace(read_weights(out), origin=origin).save(out)
    assert "origin: a from b" in convert(out, "--inspect")[0].splitlines()


def test_a_converted_classifier_is_tested_and_gives_its_encoder_to_other_classes(recipe, folder, tmp_path):
    out = tmp_path / "ours.safetensors"
    convert(folder, "--out", out)
    options = ["--recipe", recipe, "--set", "data.num_classes=400"]
    document, directly = (json_of("eval -q", "-c", given, *options) for given in (out, folder))
    assert document["videos"] == 4
    assert (directly["top1"], directly["top5"]) == (document["top1"], document["top5"])
    wrong = refused("eval", "-c", out, "--recipe", recipe, "-q", code=6)
    assert "trained with data.num_classes 400, the recipe has 2" in wrong
    shown = called("finetune", "--recipe", recipe, "--init", out, "-o", tmp_path / "run").stderr
    assert "the checkpoint predicts single-label (400), the recipe single-label (2)" in shown


def test_a_converted_classifier_selects_tokens_as_its_weights_unless_set(recipe, folder, tmp_path):
    out, table = tmp_path / "ours.safetensors", tmp_path / "p.csv"
    convert(folder, "--out", out)
    command = ["eval", "-c", out, "-r", recipe, "--set", "data.num_classes=400", "--predictions", table]

    def evaluated(*options: str) -> tuple[str, str]:
        reported = called(*command, *options, "--overwrite", "--gpus", "cpu").stderr
        return reported, table.read_text()

    of_weights, everything = evaluated(), evaluated("--set", "finetune.selection.strategy=all")
    assert of_weights[1] == everything[1]
    assert "tokens are selected as in the weights" not in everything[0]
    shown = " ".join(of_weights[0].split())
    assert "as in the weights: strategy all; recipe tiny has strategy redundancy-robust" in shown
    for override in ("finetune.selection.keep_ratio=0.6", "finetune={selection: {keep_ratio: 0.6}}"):
        assert evaluated("--set", override)[1] != everything[1]


class Intruder:
    """Makes a file when its pickle is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, zipped: bool):
    path, mark = tmp_path / "x.pth", tmp_path / "ran"
    content = {"model": tiny("videomae_finetune_base"), "args": Intruder(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for more in (["--out", tmp_path / "out.safetensors", *HEADS, "--partial"], ["--inspect"]):
        message = refused("convert", path, *more, code=6)
        assert "posix.mkdir" in message
        assert "nothing of it ran" in message
        assert len(message.splitlines()) == 1
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert mark.exists()


def test_only_convert_reads_a_pickle(recipe: Path, tmp_path: Path):
    path = saved(tmp_path / "x.pth", tiny("videomae_pretrain_base"))
    message = refused("finetune", "--recipe", recipe, "--init", path, "-o", tmp_path / "run", code=6)
    assert f"everest convert {path} --out" in message
    (tmp_path / "hf").mkdir()
    torch.save(tiny("hf_videomae_classification_base"), tmp_path / "hf" / "pytorch_model.bin")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(CONFIG))
    convert(tmp_path / "hf", "--out", tmp_path / "out.safetensors")
    for given in (tmp_path / "hf", tmp_path / "hf" / "pytorch_model.bin"):
        assert f"everest convert {given} --out" in refused("eval", "-c", given, code=6)


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def save(tensors: dict[str, torch.Tensor]) -> Callable[[Path], object]:
    return lambda path: save_file(tensors, path)


def in_folder(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Make a file beside a config.json."""
    return lambda path: (path.with_name("config.json").write_text(json.dumps(CONFIG)), make(path))


DAMAGED = "not a safetensors file, or a damaged one"
TENSORS, LFS = tiny("mme_finetune_base"), "version https://git-lfs.github.com/spec/v1"
BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut zip": ("x.pth", lambda p: cut(saved(p, TENSORS), 5000), "download or copy it again"),
    "empty": ("x.pth", lambda p: p.touch(), "download or copy it again"),
    "text": ("x.pth", write("hello, this is no checkpoint"), "not a checkpoint that torch wrote"),
    "bare pickle": ("x.pth", lambda p: p.write_bytes(pickle.dumps([1, 2])), "torch"),
    "a number": ("x.pth", lambda p: torch.save(7, p), "a int with no weights in it"),
    "no weights": ("x.pth", lambda p: torch.save({"epoch": 3}, p), "no weights in it"),
    "pointer": ("x.bin", write(LFS), "x.bin: a pointer of Git LFS, not the weights; run `git lfs pull`"),
    "web page": ("x.pt", write("<!doctype html><title>Sign in"), "download or copy it again"),
    "pointer of safetensors": ("x.safetensors", write(LFS), "x.safetensors: a pointer of Git LFS"),
    "pointer in a folder": ("d/model.safetensors", in_folder(write(LFS)), "a pointer of Git LFS"),
    "cut safetensors": ("x.safetensors", lambda p: (save_file(TENSORS, p), cut(p, 9000)), DAMAGED),
    "other model": ("x.safetensors", save({"w": torch.ones(2)}), "not a checkpoint of a known family"),
    "other suffix": ("x.onnx", write("x"), "what can be read: .safetensors, .pth"),
    "folder without config": ("d/a.pth", lambda p: p.touch(), "no config.json in it; name the file"),
    "empty folder": ("d/", lambda p: None, "no other weights"),
    "folder without weights": ("d/config.json", write("{}"), "none of model"),
    "missing": ("x.pth", lambda p: None, "no such checkpoint"),
    "not finite": (
        "x.safetensors",
        save(TENSORS | {"head.bias": torch.full((400,), torch.inf)}),
        "x.safetensors: head.bias has 400 values that are no finite numbers",
    ),
    "not finite, a pickle": (
        "x.pth",
        lambda p: saved(p, TENSORS | {"head.bias": torch.full((400,), torch.nan)}),
        "x.pth: head.bias has 400 values that are no finite numbers",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_every_failure_is_one_line_with_its_fix(case: str, tmp_path: Path):
    name, make, expected = BROKEN[case]
    given = tmp_path / name.partition("/")[0]
    if "/" in name:
        given.mkdir()
    make(tmp_path / name)
    message = refused("convert", given, "--out", tmp_path / "out.safetensors", *HEADS, code=6)
    assert expected in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_the_output_is_named_and_nothing_is_overwritten(tmp_path: Path):
    given = saved(tmp_path / "x.pth", tiny("videomae_finetune_base"))
    assert "--output" in refused("convert", given, code=2)
    assert "safetensors" in refused("convert", given, "--out", tmp_path / "x.bin", code=2)
    there = tmp_path / "there.safetensors"
    there.write_text("precious")
    assert "use --overwrite" in refused("convert", given, "--out", there, *HEADS, code=2)
    assert there.read_text() == "precious"
    save_file(tiny("videomae_finetune_base"), tmp_path / "y.safetensors")
    same = [tmp_path / "y.safetensors", "--out", tmp_path / "y.safetensors", "--overwrite"]
    assert "is an input of this command" in refused("convert", *same, code=2)


def test_sizes_of_a_saved_command_line_are_named_and_replaced_by_options(tmp_path: Path):
    given = saved(tmp_path / "x.pth", tiny("videomae_pretrain_base"), num_frames=16.0)
    message = refused("convert", given, "--inspect", *HEADS, code=6)
    assert "num_frames: Input should be a valid integer; set --frames" in message
    assert json_of("convert", given, "--inspect", *HEADS, "--frames", 16)["frames"] == 16


def test_names_of_classes_are_put_into_the_file(tmp_path: Path):
    given = saved(tmp_path / "x.pth", tiny("videomae_finetune_base"))
    names, out = tmp_path / "classes.txt", tmp_path / "out.safetensors"
    names.write_text("".join(f"class {i}\n" for i in range(400)))
    convert(given, "--out", out, *HEADS, "--classes", names)
    classes = read_weights(out).classes
    assert classes[399] == "class 399"
    names.write_text("one\n" * 400)
    options = ["--out", tmp_path / "b.safetensors", *HEADS, "--classes", names]
    assert f"{names}:2: class 'one' is in line 1 already" in refused("convert", given, *options, code=4)
