"""Checkpoints in several files: all parts are read, or each part is refused with the way to the whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import problem_of, tiny
from hub_cache import CONFIG
from safetensors.torch import load_file, save_file
from small_runs import refused, run
from torch import Tensor

from everest.checkpoints.init import find_init, read_init
from everest.checkpoints.load import open_model
from everest.converters.convert import convert
from everest.converters.foreign_checkpoint import read_foreign
from everest.converters.recognition import Hints
from everest.system.weights import read_weights, state_hash

CLASSIFIER = tiny("hf_videomae_classification_base")
NAMES = {".safetensors": "model", ".bin": "pytorch_model"}
NARROW = Hints(heads=3, decoder_heads=3)


def save(tensors: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)


def divided(folder: Path, suffix: str = ".safetensors", state: dict[str, Tensor] = CLASSIFIER) -> list[Path]:
    """Save a model in a folder of transformers as two shards, with a border between two layers."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 2}))
    second = [name for name in state if ".layer.1." in name]
    files = [folder / f"{NAMES[suffix]}-0000{number}-of-00002{suffix}" for number in (1, 2)]
    save({name: x for name, x in state.items() if name not in second}, files[0])
    save({name: state[name] for name in second}, files[1])
    shard_of = {name: files[name in second].name for name in state}
    text = json.dumps({"metadata": {}, "weight_map": shard_of})
    (folder / f"{NAMES[suffix]}{suffix}.index.json").write_text(text)
    return files


def converted_hash(path: Path) -> str:
    return state_hash(convert(read_foreign(path), Hints()).weights.tensors)


@pytest.mark.parametrize("suffix", NAMES)
def test_all_shards_of_a_folder_or_an_index_are_read(suffix: str, tmp_path: Path):
    shards = divided(tmp_path / "shards", suffix)
    index = shards[0].with_name(f"{NAMES[suffix]}{suffix}.index.json")
    whole = tmp_path / "whole"
    whole.mkdir()
    save(CLASSIFIER, whole / f"{NAMES[suffix]}{suffix}")
    (whole / "config.json").write_bytes((shards[0].parent / "config.json").read_bytes())
    assert converted_hash(shards[0].parent) == converted_hash(index) == converted_hash(whole)
    run("convert", shards[0].parent, "--output", tmp_path / "out.safetensors")
    assert state_hash(read_weights(tmp_path / "out.safetensors").tensors) == converted_hash(whole)
    if suffix == ".bin":
        assert f"everest convert {shards[0].parent} --output" in problem_of(open_model, shards[0].parent)
        return
    for path in (shards[0].parent, index):
        assert state_hash(open_model(path).weights.tensors) == converted_hash(whole)
        init = read_init(find_init(path, output=None, overwrite=False), resumed=None)
        assert state_hash(init.weights.tensors) == converted_hash(whole)
        assert (init.origin["step"], init.origin["family"]) == (None, "transformers")


@pytest.mark.parametrize("suffix", NAMES)
def test_a_shard_alone_is_refused(suffix: str, tmp_path: Path):
    shards = divided(tmp_path / "shards", suffix)
    index = shards[0].with_name(f"{NAMES[suffix]}{suffix}.index.json")
    for shard in shards:
        message = refused("convert", shard, "--output", tmp_path / "out.safetensors", code=6)
        assert f"one of 2 shards; name the index, which reads all: {index}" in message
    if suffix == ".safetensors":
        assert "one of 2 shards" in problem_of(open_model, shards[0])
        assert "one of 2 shards" in refused("predict", "x.mp4", "--checkpoint", shards[0], code=6)
    index.unlink()
    for path in (shards[0].parent, *shards):
        assert "one of 2 shards; download all shards and their index, *.index.json" in problem_of(
            read_foreign, path
        )
    only = shards[0].with_name(f"model-00001-of-00001{suffix}")  # one shard is all of a model
    alone = shards[0].with_name(f"alone{suffix}")
    for file in (only, alone):
        save(CLASSIFIER, file)
    assert converted_hash(only) == converted_hash(alone)
    renamed = shards[0].rename(tmp_path / f"layers{suffix}")  # beside an index, any name is that of a shard
    save({"x": torch.ones(1)}, tmp_path / f"rest{suffix}")
    text = json.dumps({"weight_map": {"a": renamed.name, "b": f"rest{suffix}"}})
    (tmp_path / "any.index.json").write_text(text)
    assert "one of 2 shards; name the index" in problem_of(read_foreign, renamed)


def test_an_incomplete_or_damaged_index_is_refused(tmp_path: Path):
    first, second = divided(tmp_path / "shards")
    index = first.with_name("model.safetensors.index.json")
    stored = load_file(second)
    save_file({name: x for name, x in stored.items() if "intermediate" not in name}, second)
    message = problem_of(read_foreign, first.parent)
    assert f"{second}: without videomae.encoder.layer.1.intermediate.dense." in message
    assert "which model.safetensors.index.json expects in it; download the checkpoint again" in message
    second.unlink()
    assert f"{second}: missing; download the checkpoint again" in problem_of(read_foreign, first.parent)
    for text in ("[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}'):
        index.write_text(text)
        assert "index.json: damaged" in problem_of(read_foreign, first.parent)


SIZES: dict[str, tuple[str, dict[str, Any], str]] = {
    "layers": ("classification", {"num_hidden_layers": 4}, "num_hidden_layers is 2, not 4"),
    "fewer layers": ("classification", {"num_hidden_layers": 1}, "num_hidden_layers is 2, not 1"),
    "width": ("classification", {"hidden_size": 96}, "hidden_size is 48, not 96"),
    "MLP": ("classification", {"intermediate_size": 768}, "intermediate_size is 192, not 768"),
    "decoder": ("pretraining", {"decoder_num_hidden_layers": 4}, "decoder_num_hidden_layers is 2, not 4"),
    "decoder's width": ("pretraining", {"decoder_hidden_size": 384}, "decoder_hidden_size is 24, not 384"),
    "head": (
        "pretraining",
        {"architectures": ["VideoMAEForVideoClassification"]},
        "classifier.weight is missing",
    ),
    "decoder's head": (
        "classification",
        {"architectures": ["VideoMAEForPreTraining"]},
        "decoder.head.weight is missing",
    ),
}


@pytest.mark.parametrize("case", SIZES)
def test_other_sizes_than_those_of_config_json_are_refused(case: str, tmp_path: Path):
    stage, changes, message = SIZES[case]
    save_file(tiny(f"hf_videomae_{stage}_base"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = problem_of(lambda path=path: convert(read_foreign(path), NARROW))
        assert f"not what its config.json states: {message}" in found
        assert "download all files of one" in found
        if stage == "classification":
            assert f"states: {message}" in problem_of(open_model, path)


def test_a_file_of_deepspeed_is_read_unless_zero_3_divided_its_weights(tmp_path: Path):
    folder, state = tmp_path / "global_step5", tiny("videomae_pretrain_base")
    file = folder / "mp_rank_00_model_states.pt"
    folder.mkdir()
    torch.save({"module": state, "ds_config": {}}, file)
    torch.save({}, folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (tmp_path / "latest").write_text(folder.name)
    assert read_foreign(file).tensors.keys() == state.keys()
    for named in (folder, tmp_path):
        assert f"name the file itself: {file}" in problem_of(read_foreign, named)
    torch.save({"module": {name: torch.empty(0) for name in state}}, file)
    message = problem_of(lambda: convert(read_foreign(file), Hints()))
    assert "ZeRO-3 divided among processes; join them by python zero_to_fp32.py FOLDER OUTPUT" in message


def test_safetensors_may_have_the_ending_of_a_pickle_but_not_the_reverse(tmp_path: Path):
    state = tiny("videomae_finetune_base")
    save_file(state, tmp_path / "x.pth")
    assert state_hash(dict(read_foreign(tmp_path / "x.pth").tensors)) == state_hash(state)
    for is_zip in (True, False):
        torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=is_zip)
        renamed = (tmp_path / "x.bin").rename(tmp_path / "y.safetensors")
        assert "a pickle with the ending of safetensors; rename it to .pth" in problem_of(
            read_foreign, renamed
        )


def test_models_inside_of_a_pickle_are_named(tmp_path: Path):
    state = {f"module.backbone.{name}": x for name, x in tiny("videomae_finetune_base").items()}
    torch.save({"encoder": state, "predictor": {}, "target_encoder": state}, tmp_path / "v-jepa.pt")
    message = problem_of(read_foreign, tmp_path / "v-jepa.pt")
    assert "a .pt of V-JEPA 2 is not read, use transformers': hf:facebook/vjepa2-vitl-fpc64-256" in message
    torch.save({"student": state, "teacher": state, "epoch": 3}, tmp_path / "dino.pth")
    assert "save one of them alone: student, teacher" in problem_of(read_foreign, tmp_path / "dino.pth")
