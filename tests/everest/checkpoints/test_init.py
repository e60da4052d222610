import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign import tiny
from processes import TWO
from safetensors.torch import load_file, save_file
from small_runs import called, contents, equal, killed_copy, refused, run, same_run, sets, weights
from tiny_models import randomized, save_model

from everest.checkpoints.init import find_init, load_init, read_init
from everest.checkpoints.load import open_model
from everest.config.heads import Head
from everest.config.recipe import load_recipe
from everest.engine.network import stage_optimizer
from everest.errors import CheckpointError
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import classifier_spec, pretrain_spec
from everest.system.weights import Weights, read_weights
from everest.system.weights_header import read_header, read_metadata

LARGER = ("--set", "data.size=48")


@pytest.fixture
def pretrain(recipe: Path) -> list[str]:
    return ["pretrain", "--recipe", str(recipe), "-q"]


@pytest.fixture
def first(autoencoder_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(autoencoder_run, tmp_path / "first"))


def started(first, recipe, *overrides: str, decoder=None) -> tuple[MaskedAutoencoder, list[str]]:
    """A new autoencoder that starts from a run, and the notices."""
    found = find_init(first, output=None, overwrite=False, decoder=decoder)
    init = read_init(found, resumed=None)
    spec = init.adapt_spec(pretrain_spec(load_recipe(str(recipe), overrides=overrides)))
    torch.manual_seed(1)
    model, notices = spec.build(), []
    load_init(model, spec, init, notify=notices.append)
    return model, notices


def test_an_equal_model_continues_with_all_weights_unless_the_decoder_is_to_be_fresh(first, recipe):
    model, notices = started(first, recipe)
    assert equal(model.state_dict(), weights(first))
    assert notices == ["the decoder is also kept"]
    model, notices = started(first, recipe, decoder="fresh")
    old, new = weights(first), model.state_dict()
    same = {name for name in old if torch.equal(old[name], new[name])}
    assert {name for name in old if name.startswith("encoder.")} <= same
    assert not {"decoder.blocks.0.attn.qkv.weight", "mask_token"} & same
    assert notices == ["the decoder starts fresh: requested by --decoder fresh"]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.decoder_depth=2", "it needs --set model.decoder_depth=1"),
        ("model.decoder_heads=4", "it needs --set model.decoder_heads=2"),
        ("model.tubelet=[4,8,8]", "it has another size"),
        ("pretrain.target.frames=half", "it predicts other targets"),
        ("pretrain.target.normalize=false", "it predicts other targets"),
    ],
)
def test_a_decoder_that_does_not_fit_starts_fresh(first, recipe, pretrain, tmp_path, override, reason):
    model, notices = started(first, recipe, override)
    assert notices[-1] == f"the decoder starts fresh: {reason}"
    old, new = weights(first), model.state_dict()
    name = "encoder.blocks.0.attn.qkv.weight"
    assert torch.equal(new[name], old[name])
    command = [*pretrain, "--init", first, "--decoder", "keep", "-o", tmp_path / "x", "--set", override]
    message = refused(*command, code=6)
    assert f"its decoder cannot be kept: {reason}; use --decoder fresh\n" in message
    assert not (tmp_path / "x").exists()


def test_a_classifier_gives_its_encoder(recipe: Path, classifier_run: Path):
    model, notices = started(classifier_run, recipe)
    assert notices == [
        "the norm after the encoder starts fresh: classifier weights have none",
        "the decoder starts fresh: classifier weights have none",
    ]
    name, best = "encoder.blocks.1.mlp.fc2.weight", load_file(classifier_run / "best.safetensors")
    assert torch.equal(model.state_dict()[name], best[name])


def saved_classifier(recipe: Path, file: Path, classes: tuple[str, ...] | None) -> None:
    """Save a classifier of two classes with random weights."""
    spec = classifier_spec(load_recipe(str(recipe)), (Head(outputs=2),))
    save_model(file, spec, randomized(spec.build()), classes=classes)


@pytest.mark.parametrize(
    ("before", "now", "other"),
    [
        (("fight", "normal"), ("fight", "normal"), None),
        (("fight", "normal"), None, None),
        (None, ("fight", "normal"), None),
        (("fight", "normal"), ("fall", "normal"), "fall"),
        (("fight", "normal"), ("normal", "fight"), "normal"),
    ],
)
def test_a_head_is_kept_for_the_same_classes_only(recipe, tmp_path, before, now, other):
    saved_classifier(recipe, file := tmp_path / "before.safetensors", before)
    init = read_init(find_init(file, output=None, overwrite=False), resumed=None)
    spec = classifier_spec(load_recipe(str(recipe)), (Head(outputs=2),))
    model, given = spec.build(), []
    load_init(model, spec, init, classes=now, notify=given.append)
    old, new = load_file(file), model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == ({"head.weight", "head.bias"} if other else set())
    head = f"starts fresh: class 0 is 'fight' in the checkpoint, {other!r} in the data"
    assert given == ["the pooling is also kept", f"the head {head if other else 'is also kept'}"]


def test_other_clips_selections_and_targets(first: Path, pretrain: list[str], tmp_path: Path):
    settings = ["data.frames=8", "data.size=48", "pretrain.selection.strategy=tube", "model.tubelet=[1,8,8]"]
    run(*pretrain, "--init", first, "-o", tmp_path / "second", *sets(*settings))
    assert weights(tmp_path / "second")["encoder.patch_embed.proj.weight"].shape[2] == 1


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ("model.width=48", "model.width=24"),
        ("model.heads=4", "model.heads=2"),
        ("model.tubelet=[2,16,16]", "model.tubelet=[2,8,8]"),
        ("model.tubelet=[4,16,16]", "model.tubelet=[4,8,8]"),
        ("model.positions=learned-separable", "model.positions=flat"),
        ("model.class_token=true", "model.class_token=false"),
        ("model.input=differences", "model.input=frames"),
        ("model.embedding_layers=2", "model.embedding_layers=1"),
    ],
)
@pytest.mark.parametrize("stage", ["pretrain", pytest.param("finetune", marks=pytest.mark.slow)])
def test_another_encoder_is_refused_with_the_settings_that_fit(first, recipe, tmp_path, stage, setting, fix):
    command = [stage, "--recipe", recipe, "--init", first, "-o", tmp_path / "x", "-q"]
    command += sets("data.size=64", setting)
    assert f"its encoder differs from the recipe's; use --set {fix}\n" in refused(*command, code=6)
    assert not (tmp_path / "x").exists()
    assert "loss: " in called(*command, "--set", fix, "--dry-run").stdout


@pytest.mark.parametrize("several", [[], TWO])  # found before two processes start
def test_bad_input(first: Path, pretrain: list[str], several: list[str], tmp_path: Path):
    out = ["-o", tmp_path / "x", *several]
    for init, code, message in (
        (tmp_path / "nothing", 6, "no such checkpoint"),
        (pretrain[2], 6, "not a safetensors file, or a damaged one"),
        ("hf:nobody", 6, "not a name of a repository"),
        ("timm:vit_small", 2, "timm has no such model"),
        ("", 2, "--init: missing"),
    ):
        assert message in refused(*pretrain, "--init", init, *out, code=code)
    before, over = contents(first), ["--init", first, *out[2:], "-o", first, "--overwrite"]
    assert "holds the weights of --init" in refused(*pretrain, *over, code=2)
    assert contents(first) == before
    assert "decoder: needs init (--init)" in refused(*pretrain, "--decoder", "keep", *out[:2], code=2)
    assert "or `none` to train from scratch" in refused("finetune", *pretrain[1:], *out, code=2)
    assert not (tmp_path / "x").exists()


IN_BLOCK = "encoder.blocks.1.norm2.bias"


@pytest.mark.parametrize(
    ("stage", "of", "lost", "message"),
    [
        *((stage, "pretrain", IN_BLOCK, f"1 missing ({IN_BLOCK})") for stage in ("pretrain", "finetune")),
        *(
            ("finetune", "finetune", lost, f"damaged, it has no {lost}\n")
            for lost in ("norm.weight", "head.bias", "head.weight")
        ),
    ],
)
def test_weights_that_lack_a_tensor_are_refused(
    autoencoder_run, classifier_run, recipe, tmp_path, stage, of, lost, message
):
    whole = read_weights((autoencoder_run if of == "pretrain" else classifier_run) / "model.safetensors")
    tensors = {name: tensor for name, tensor in whole.tensors.items() if name != lost}
    replace(whole, tensors=tensors).save(tmp_path / "x.safetensors")
    command = [stage, "--recipe", recipe, "--init", tmp_path / "x.safetensors", "-o", tmp_path / "run"]
    assert message in refused(*command, "-q", code=6)
    assert not (tmp_path / "run").exists()


def test_a_chain_of_runs_tells_its_descent(first, pretrain, recipe, tmp_path):
    run(*pretrain, "--init", first, "-o", tmp_path / "second", *LARGER, "--set", "train.seed=1")
    run("finetune -q", "--recipe", recipe, "--init", tmp_path / "second", "-o", tmp_path / "third")
    files = [str(tmp_path / name / "model.safetensors") for name in ("second", "first")]
    origin = read_header(tmp_path / "third" / "model.safetensors").origin
    assert [origin["file"], origin["origin"]["file"]] == files
    assert origin["origin"]["origin"] is None
    assert (origin["kind"], origin["step"], origin["recipe"]) == ("pretrain", 3, "tiny")
    assert json.loads((tmp_path / "third" / "env.json").read_text())["origin"] == origin


def test_a_run_resumes_without_the_weights_that_it_started_from(first, pretrain, tmp_path):
    command = [*pretrain, "--init", first, *sets("model.positions=interpolated-flat"), *LARGER]
    run(*command, "-o", tmp_path / "whole")
    killed = killed_copy(tmp_path / "whole", tmp_path / "killed")
    first.rename(tmp_path / "moved")
    other = refused(*command, "-o", tmp_path / "other", code=6)
    assert "no such checkpoint" in other
    message = refused(*command, "--decoder", "fresh", "-o", killed, code=2)
    assert "different settings: --decoder (null, now " in message
    run(*command, "-o", killed)
    assert equal(weights(killed), weights(tmp_path / "whole"))
    headers = [read_header(path / "model.safetensors") for path in (killed, tmp_path / "whole")]
    assert headers[0] == headers[1]
    assert headers[0].settings["position_grid"] == [2, 4, 4]


def test_a_run_without_a_state_reads_its_weights_again(first: Path, pretrain: list[str], tmp_path: Path):
    run(*pretrain, "--init", first, "-o", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "state")
    (tmp_path / "killed" / "model.safetensors").unlink()
    run(*pretrain, "--init", first, "-o", tmp_path / "killed")
    assert same_run(tmp_path / "killed", tmp_path / "whole")


def test_learning_rates_of_encoder_and_decoder(first: Path, recipe: Path):
    settings = load_recipe(str(recipe), overrides=["pretrain.encoder_lr_scale=0.1"]).pretrain
    model, _ = started(first, recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {
        names[id(parameter)]: group["lr_scale"]
        for group in stage_optimizer(model, settings).param_groups
        for parameter in group["params"]
    }
    assert scales.keys() == dict(model.named_parameters()).keys()
    assert scales["decoder.head.weight"] == scales["mask_token"] == 1
    of_encoder = [scale for name, scale in scales.items() if name.startswith("encoder.")]
    assert of_encoder == pytest.approx([0.1] * len(of_encoder))
    assert scales["encoder.norm.weight"] == pytest.approx(0.1)


def test_interpolated_positions_keep_the_meaning_of_positions(first: Path, recipe: Path):
    """At twice the size, each position has the mean of the four into which it is divided."""
    model, _ = started(first, recipe, "model.positions=interpolated-flat")
    assert torch.equal(model.encoder.position.table, started(first, recipe)[0].encoder.position.table)
    larger, notices = started(first, recipe, "model.positions=interpolated-flat", "data.size=64")
    assert not any("positions" in notice for notice in notices)
    flat, notices = started(first, recipe, "data.size=64")
    assert any("model.positions=interpolated-flat keeps them" in notice for notice in notices)
    old = model.encoder.position.table.unflatten(0, (2, 4, 4))  # (t, h, w, D)

    def difference(other: MaskedAutoencoder) -> float:
        new = other.encoder.position.table.unflatten(0, (2, 4, 2, 4, 2)).mean(dim=(2, 4))  # (t, h, w, D)
        return float((new - old).norm() / old.norm())

    assert difference(larger) < 0.2
    assert difference(flat) > 0.8


def test_weights_with_interpolated_positions_open_at_other_sizes(first, pretrain, tmp_path):
    positions = ["--set", "model.positions=interpolated-flat"]
    run(*pretrain, "--init", first, "-o", tmp_path / "second", *LARGER, *positions)
    tables = []
    for size in (32, 48):
        model = open_model(tmp_path / "second", size=(size, size)).transformer
        tables.append(model.encoder.position.table)
    assert torch.equal(tables[0], open_model(first).transformer.encoder.position.table)
    assert tables[1].shape == (72, 24)


def test_a_run_names_the_weights_that_it_starts_from(first, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def notices(stage: str, init: str) -> list[str]:
        shown = called(stage, "--recipe", recipe, "--init", init, "--dry-run", "-q").stderr.splitlines()
        return [line for line in shown if "weights: " in line]

    step = read_header(first / "model.safetensors").step
    for stage in ("pretrain", "finetune"):
        assert notices(stage, "first") == [f"weights: encoder of first, step {step} of {step}"]
    environment = json.loads((first / "env.json").read_text())
    environment["plan"] |= {"steps": 849, "finished": None}  # as if the run had been stopped
    (first / "env.json").write_text(json.dumps(environment))
    progress = f"step {step} of 849 of a run that is not finished"
    assert notices("finetune", "first") == [f"weights: encoder of first, {progress}"]
    shutil.copy(first / "model.safetensors", "alone.safetensors")
    assert notices("pretrain", "alone.safetensors") == [f"weights: encoder of alone.safetensors, step {step}"]


BIAS = "encoder.blocks.1.mlp.fc2.bias"


def spoiled(file: Path, copy: Path, value: float, name: str = BIAS) -> Path:
    """A copy of a weights file in which one value of a tensor is `value`."""
    tensors = load_file(file)
    tensors[name].view(-1)[3] = value
    copy.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, copy, metadata=read_metadata(file))
    return copy


def test_a_value_that_is_no_number_is_named_with_its_tensor_and_file(classifier_run: Path, tmp_path: Path):
    file = tmp_path / "x.safetensors"
    for value in (math.nan, math.inf, -math.inf):
        spoiled(classifier_run / "model.safetensors", file, value)
        with pytest.raises(CheckpointError) as error:
            read_weights(file)
        assert str(error.value).startswith(f"{file}: {BIAS} has 1 value that is no finite number")
    tensors = {"w": torch.tensor([1.0, 1e300], dtype=torch.float64)}  # beyond float32
    Weights(kind="pretrain", settings={}, classes=None, recipe="r", step=1, tensors=tensors).save(file)
    with pytest.raises(CheckpointError, match="w has 1 value that is no finite number"):
        read_weights(file)


def test_sparse_weights_are_refused(tmp_path: Path):
    file, tensors = tmp_path / "x.pth", tiny("videomae_finetune_base")
    for name, values in (("head.weight", tensors["head.weight"]), ("pos_embed", torch.ones(1, 1568, 48))):
        torch.save({"model": tensors | {name: values.to_sparse()}}, file)
        message = refused("convert", file, "-o", tmp_path / "out.safetensors", "--heads", 3, code=6)
        assert message.count("\n") == 1
        assert f"{name} is stored as torch.sparse_coo, not as a dense tensor" in message


def test_weights_too_large_to_compute_with_are_refused(classifier_run, clip_files, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(classifier_run, run)
    (run / "best.safetensors").unlink()
    spoiled(run / "model.safetensors", run / "model.safetensors", 3e38, "head.weight")
    spoiled(run / "model.safetensors", run / "model.safetensors", 3e38, "norm.bias")
    for command in (["eval"], ["predict", clip_files / "clip0.mp4", "--json"]):
        message = refused(*command, "-c", run, code=6)
        assert message.endswith("\n")
        assert "its outputs are not finite" in message.splitlines()[-1]
