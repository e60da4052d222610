import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import LINE, problem_of, tiny
from hub_cache import CONFIG
from safetensors.torch import load_file, save_file
from small_runs import refused

from everest.checkpoints.load import find_weights, open_model
from everest.converters.convert import Conversion, convert
from everest.converters.foreign_checkpoint import read_foreign
from everest.converters.recognition import Hints
from everest.system.weights_header import read_metadata
from everest.tokenizer.spec import TokenizerSpec

HEADERS = {
    "settings list": ({"settings": "[]"}, "damaged (settings"),
    "settings empty": ({"settings": "{}"}, "frames: Field required"),
    "classes number": ({"classes": "3"}, "damaged (classes"),
    "classes few": ({"classes": '["a"]'}, "1 names of classes, its head has 2"),
    "step negative": ({"step": "-5"}, "damaged (step"),
    "version": ({"version": "-1"}, "has version -1, not 1"),
    "newer version": ({"version": "2"}, "has version 2, not 1; update everest"),
    "kind": ({"kind": "x" * 5000}, "damaged (kind"),
    "kind of another": ({"kind": "tokenizer"}, "damaged (settings"),
    "origin": ({"origin": "3"}, "damaged (origin"),
    "clip number": ({"clip": "3"}, "damaged (clip"),
    "clip stride": ({"clip": '{"stride": 0, "sampling": "dense"}'}, "damaged (clip"),
}


def with_header(file: Path, copy: Path, **changes: str) -> Path:
    save_file(load_file(file), copy, metadata=read_metadata(file) | changes)
    return copy


def converted(given: Path) -> Conversion:
    return convert(read_foreign(find_weights(given)), Hints())


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_header_is_named(name: str, classifier_run: Path, tmp_path: Path):
    changes, message = HEADERS[name]
    file = with_header(classifier_run / "model.safetensors", tmp_path / "x.safetensors", **changes)
    assert message in problem_of(open_model, file)
    assert problem_of(open_model, file).startswith(f"{file}: ")


def _set(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(settings: dict[str, Any]) -> None:
        for key in keys[:-1]:
            settings = settings[key]
        settings[keys[-1]] = value

    return change


SETTINGS = {
    "depth": (_set("model", "depth", value=10**9), "less than or equal to 1000"),
    "deep": (_set("model", "depth", value=900), "do not fit the model"),
    "width": (_set("model", "width", value=2**30), "less than or equal to 65536"),
    "frames": (_set("frames", value=2 * 10**12), "frames: Input should be less than"),
    "odd frames": (_set("frames", value=3), "frames (3) must be a multiple"),
    "size": (_set("size", value=[2**40, 2**40]), "size.0: Input should be less than"),
    "tokens": (_set("size", value=[2**14, 2**14]), "tokens, 1048576 are possible"),
    "tubelet": (_set("model", "tubelet", value=[0, 8, 8]), "model.tubelet.0: Input"),
    "classes": (_set("heads", value=[{"outputs": 10**12}]), "heads.0.outputs: Input"),
    "no classes": (_set("heads", value=[]), "heads: missing"),
    "numbers": (_set("heads", value=[{"outputs": 2, "task": "regression"}]), "regression has one output"),
    "drop path": (_set("drop_path", value=1e308), "drop_path: Input"),
    "kind": (_set("kind", value="pretrain"), "damaged (settings"),
    "keep nothing": (_set("selection", "keep_ratio", value=1e-320), "keeps none of"),
    "heads of attention": (_set("model", "heads", value=5), "model.heads: 5 heads do not divide"),
    "positions": (_set("model", "positions", value="separable"), "model.width: 24 is no multiple of 16"),
    "stds of pixels": (_set("pixels", value={"mean": [0.5], "std": [0.2] * 2}), "1 means and 2 stds, one of"),
    "std of pixels": (_set("pixels", value={"mean": [0.5], "std": [0.0]}), "a std must be from 1e-06"),
    "mean of pixels": (_set("pixels", value={"mean": [2.0], "std": [1.0]}), "a mean must be from 0 to 1"),
    "pixels": (_set("pixels", value=[0.5, 0.2]), "its settings are not readable: pixels: Input"),
    "long key": (_set("x" * 100_000, value=1), "its settings are not readable: xxx"),
    "of another kind": (_set("camera", value=0.5), "its settings are not readable: camera"),
}


OF_PRETRAINING = {
    "alpha": (_set("frame_selection", "alpha", value=1e308), "alpha: Input"),
    "tokenizer": (_set("tokenizer", value={"settings": {}}), "its settings are not readable: tokenizer"),
}


@pytest.mark.parametrize("name", [*SETTINGS, *OF_PRETRAINING])
def test_settings_of_no_model_are_refused(name, classifier_run, autoencoder_run, tmp_path):
    change, message = (SETTINGS | OF_PRETRAINING)[name]
    run = autoencoder_run if name in OF_PRETRAINING else classifier_run
    original = run / "model.safetensors"
    settings = json.loads(read_metadata(original)["settings"])
    change(settings)
    file = with_header(original, tmp_path / "x.safetensors", settings=json.dumps(settings))
    assert message in problem_of(open_model, file)


TOKENIZER = {
    "config": {"stem": [2, 4], "channels": 8, "multipliers": [1, 1], "time_down": [False], "blocks": 1},
    **{"chunk": 8, "size": [32, 32], "keep": 0.25},
}
TOKENIZER["config"] |= {"decoder_blocks": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("config", "blocks", value=10**9), "blocks: Input"),
        (_set("config", "levels", value=[2**16] * 32), "levels: "),
        (_set("config", "time_down", value=[]), "0 values for 1 halvings"),
        (_set("config", "multipliers", value=[1] * 60), "1 values for 59 halvings"),
        (_set("config", "input_scale", value=1e-320), "input_scale: Input"),
        (_set("chunk", value=3), "frames: must be a multiple of 2"),
    ],
)
def test_settings_of_no_tokenizer_are_refused(change: Callable[[dict[str, Any]], None], message: str):
    settings = json.loads(json.dumps(TOKENIZER))
    assert TokenizerSpec.from_settings(settings, source=Path("x")).chunk == 8
    change(settings)
    assert message in problem_of(TokenizerSpec.from_settings, settings, source=Path("x"))


def test_numbers_of_another_type_and_headers_of_any_length_are_refused(classifier_run: Path, tmp_path: Path):
    content, file = (classifier_run / "model.safetensors").read_bytes(), tmp_path / "x.safetensors"
    length = struct.unpack("<Q", content[:8])[0]
    for dtype in (b'"I32"', b'"U32"'):
        header = content[8 : 8 + length].replace(b'"F32"', dtype)
        file.write_bytes(content[:8] + header + content[8 + length :])
        assert "of another type" in problem_of(open_model, file)
    deep = b'{"a":' * 50_000
    for content in (b"", b"\1", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", len(deep)) + deep):
        file.write_bytes(content)
        message = refused("convert", file, "--inspect", code=6)
        assert message.count("\n") == 1
        assert len(message) < LINE


CONFIGS = {
    "eps": ({"layer_norm_eps": "x"}, "layer_norm_eps: Input should be a valid number; fix its config.json"),
    "relu": ({"hidden_act": "relu"}, "hidden_act is relu; our blocks have gelu"),
    "text of frames": ({"num_frames": "many"}, "num_frames: Input should be a valid integer"),
    "odd frames": ({"num_frames": 3}, "must be a multiple of the tubelet's"),
    "heads": ({"num_attention_heads": True}, "num_attention_heads: Input should be a valid integer"),
    "frames": ({"num_frames": 10**9}, "tokens, 1048576 are possible"),
    "size": ({"image_size": ["a", "b"]}, "image_size.0: Input should be a valid integer"),
    "classes": ({"id2label": {"a": "b"}}, "id2label.a"),
    "classes of lists": ({"id2label": {str(i): [i] for i in range(400)}}, "id2label.0"),
}
TEXTS = {
    "list": ("[]", "not a configuration"),
    "cut": ("{", "not readable as JSON"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "digits": (f'{{"num_frames": {"1" * 5000}}}', "not readable as JSON"),
}


@pytest.fixture(scope="module")
def transformers_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("hf") / "model.safetensors"
    save_file(tiny("hf_videomae_classification_base"), file)
    return file


@pytest.mark.parametrize("name", CONFIGS | TEXTS)
def test_a_configuration_of_no_model_is_refused(name: str, transformers_weights: Path, tmp_path: Path):
    changes, message = (CONFIGS | TEXTS)[name]
    (tmp_path / "model.safetensors").symlink_to(transformers_weights)
    text = changes if isinstance(changes, str) else json.dumps(CONFIG | changes)
    (tmp_path / "config.json").write_text(text)
    assert message in problem_of(converted, tmp_path)


def test_the_number_of_blocks_has_a_limit(tmp_path: Path):
    for number in ("1000", "999999999", "9" * 4000):
        tensors = tiny("videomae_pretrain_base")
        tensors[f"encoder.blocks.{number}.norm1.weight"] = torch.zeros(48)
        save_file(tensors, tmp_path / "x.safetensors")
        assert "at most 1000 are possible" in problem_of(converted, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.patch_embed.proj.weight", (0, 3, 2, 16, 16)),
        ("encoder.patch_embed.proj.weight", (48, 3, 0, 16, 16)),
        ("encoder.blocks.0.norm1.weight", ()),
        ("decoder.norm.weight", ()),
        ("mask_token", (0, 1, 24)),
    ],
)
def test_shapes_of_no_layer_are_refused(name: str, shape: tuple[int, ...], tmp_path: Path):
    tensors = tiny("videomae_pretrain_base")
    assert name in tensors
    save_file(tensors | {name: torch.zeros(shape)}, tmp_path / "x.safetensors")
    assert f"{name} has a shape that no layer has" in problem_of(converted, tmp_path / "x.safetensors")
    tensors = tiny("hf_videomae_classification_base")
    key = next(name for name in tensors if name.endswith("attention.key.weight"))
    save_file(tensors | {key: torch.zeros(48, 47)}, tmp_path / "model.safetensors")  # not as wide as queries
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert "has a shape that no layer has" in problem_of(converted, tmp_path)
