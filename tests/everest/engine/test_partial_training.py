from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from processes import TWO, UNMIXED, everest
from safetensors.torch import load_file
from small_runs import equal, killed_copy, logged, refused, run, same_run, sets, weights
from tiny_models import grouped, tiny
from torch import Tensor, nn

from everest.config.stage_settings import FinetuneSettings, LoraSettings
from everest.models.partial import LowRank, freeze_and_adapt, merge_adapters

LORA = ("finetune.lora.rank=4", "finetune.lora.dropout=0.25", "finetune.lora.layers=[qkv, proj, fc1, fc2]")


@pytest.fixture(scope="module")
def adapted(recipe: Path, autoencoder_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    run(*finetune(recipe, autoencoder_run, *LORA), "-o", folder)
    return folder


def finetune(recipe: Path, init: Path, *settings: str) -> list[str]:
    return ["finetune", "--recipe", str(recipe), "--init", str(init), "-q", *sets(*settings)]


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(max((folder / "state").glob("*.safetensors")))


def learned(folder: Path) -> set[str]:
    """The parameters with moments of the optimizer."""
    return {name.split("/")[1] for name in state(folder) if name.startswith("optimizer/")}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The weights of the encoder that are not equal to the bit."""
    return {key for key in after if key.startswith("encoder.") and not torch.equal(after[key], before[key])}


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ("encoder", "encoder."),
        ("embedding", "encoder.patch_embed."),
        ("first:1", "encoder.blocks.0."),
        ("first:2", "encoder."),
    ],
)
def test_frozen_parts_keep_their_bits_and_have_no_moments(recipe, autoencoder_run, tmp_path, freeze, frozen):
    run(*finetune(recipe, autoencoder_run, f"finetune.freeze={freeze}"), "-o", tmp_path / "run")
    before, after = weights(autoencoder_run), weights(tmp_path / "run")
    encoder = {name for name in after if name.startswith("encoder.")}
    stays = {name for name in encoder if name.startswith(("encoder.patch_embed.", frozen))}
    assert changed(before, after) == encoder - stays
    assert learned(tmp_path / "run") == after.keys() - stays


@pytest.mark.parametrize("settings", [("finetune.freeze=first:1",), (*LORA, "train.ema=0.9")])
def test_a_stopped_run_resumes_to_the_same_bits(recipe, autoencoder_run, tmp_path, settings):
    command = finetune(recipe, autoencoder_run, *settings)
    run(*command, "-o", tmp_path / "whole")
    killed_copy(tmp_path / "whole", tmp_path / "parts")
    run(*command, "-o", tmp_path / "parts")
    assert same_run(tmp_path / "parts", tmp_path / "whole")
    assert equal(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_only_adapters_and_what_follows_the_encoder_learn(autoencoder_run: Path, adapted: Path):
    names = {name for name in learned(adapted) if name.startswith("encoder.")}
    assert len(names) == 2 * 2 * 4  # A and B, 2 blocks, 4 layers
    assert all(name.endswith((".a", ".b")) for name in names)
    assert learned(adapted) - names == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    kept = {name.removeprefix("model/"): value for name, value in state(adapted).items() if "model/" in name}
    base = weights(autoencoder_run)
    for name, value in kept.items():
        if name.startswith("encoder.") and name not in names:
            assert torch.equal(value, base[name.replace("original", "weight")]), name


def test_weights_are_saved_merged_and_states_apart(autoencoder_run: Path, adapted: Path):
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    matrices = {f"encoder.blocks.{block}.{layer}.weight" for block in range(2) for layer in layers}
    after = weights(adapted)
    assert changed(weights(autoencoder_run), after) == matrices
    assert not [name for name in after if name.endswith("original")]
    saved = state(adapted)
    for name in matrices:
        layer = f"model/{name.removesuffix('.weight')}"
        change = saved[f"{layer}.b"] @ saved[f"{layer}.a"] * 16 / 4
        torch.testing.assert_close(after[name], saved[f"{layer}.original"] + change)


@pytest.mark.parametrize("setting", ["train.checkpointing=true", "train.precision=bf16"])
def test_adapters_learn_with_settings_of_memory(recipe, autoencoder_run, adapted, tmp_path, setting):
    run(*finetune(recipe, autoencoder_run, *LORA, setting), "-o", tmp_path / "run")
    tolerance = 0.02 if "bf16" in setting else 1e-5
    assert logged(tmp_path / "run") == pytest.approx(logged(adapted), rel=tolerance)


@pytest.mark.slow
def test_adapters_learn_in_a_compiled_model(recipe: Path, autoencoder_run: Path, tmp_path: Path):
    for compiled in ("false", "true"):  # compiled, dropout and stochastic depth draw other numbers
        settings = (LORA[0], LORA[2], "finetune.drop_path=0", f"train.compile={compiled}")
        run(*finetune(recipe, autoencoder_run, *settings), "-o", tmp_path / compiled)
    assert logged(tmp_path / "false") == pytest.approx(logged(tmp_path / "true"), rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_adapters_like_one(recipe, autoencoder_run, tmp_path):
    command = finetune(recipe, autoencoder_run, LORA[0], LORA[2], *UNMIXED, "finetune.epochs=10")
    run(*command, "-o", tmp_path / "one", "--set", "train.micro_batch=4", "--gpus", "cpu")
    everest(*command, "-o", tmp_path / "two", *TWO)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max((two[name] - one[name]).abs().max() for name in one) < 1e-3


def test_new_weights_cannot_be_adapted_or_frozen(recipe: Path, tmp_path: Path):
    command = ["finetune --init none -q", "--recipe", recipe, "-o", tmp_path / "run"]
    said = refused(*command, "--set", "finetune.lora.rank=4", code=2)
    assert "finetune.lora.rank=4 needs trained weights" in said
    for freeze in ("encoder", "first:1"):
        said = refused(*command, "--set", f"finetune.freeze={freeze}", code=2)
        assert f"finetune.freeze={freeze} needs trained weights" in said
        assert "name a checkpoint with --init, or set finetune.freeze=none" in said
        assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


ALL = ("qkv", "proj", "fc1", "fc2")
PRECISIONS = [torch.float32, torch.bfloat16]


def classifier(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = tiny("classifier", num_classes=3, **options).eval()
    nn.init.normal_(model.head.weight)
    return model


def with_adapters(model: nn.Module, *, trained: bool = False, **options: object) -> nn.Module:
    """A copy with adapters; `trained`: with an arbitrary B."""
    copied = copy.deepcopy(model)
    freeze_and_adapt(copied, FinetuneSettings(lora=LoraSettings(rank=4, **options)))
    for module in copied.modules():
        if trained and isinstance(module, LowRank):
            nn.init.normal_(module.b, std=0.1)
    return copied


def clips() -> Tensor:
    return torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(clips())


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_new_adapters_change_no_bit_and_merged_weights_compute_the_same_bits(dtype: torch.dtype):
    model, fresh = classifier(), classifier()
    for dropout in (0.0, 0.5):
        untrained = with_adapters(model, dropout=dropout, layers=ALL).train()
        assert torch.equal(outputs(untrained, dtype), outputs(model, dtype))
    trained = with_adapters(model, trained=True, layers=ALL)
    fresh.load_state_dict(merge_adapters(trained, trained.state_dict()))
    assert torch.equal(outputs(fresh, dtype), outputs(trained, dtype))
    assert not torch.equal(outputs(fresh, dtype), outputs(model, dtype))


def test_layer_decay_holds_for_the_adapters_of_a_block():
    groups = grouped(with_adapters(classifier()), layer_decay=0.5)
    scales = {name.split(".")[2]: scale for name, (_, scale) in groups.items() if "blocks" in name}
    assert scales == {"0": 0.25, "1": 0.5}
    assert {decay for name, (decay, _) in groups.items() if "blocks" in name} == {0.05}
