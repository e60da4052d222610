"""Strategies and targets of other packages, named by import path; weights import only known modules."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_runs import called, metrics, refused, sets

import everest
from everest.config.recipe import dump_recipe, load_recipe
from everest.errors import CheckpointError, RecipeError
from everest.methods.strategies import RedundancyRobust
from everest.models.spec import pretrain_spec, read_model_spec

ROOT = Path(__file__).resolve().parents[3]
# The code that docs/methods.md shows, and things that are no strategy.
PAGE = (ROOT / "docs" / "methods.md").read_text()
(SHOWN,) = re.findall(r"```python\n# mypackage/methods\.py\n(.*?)```", PAGE, flags=re.DOTALL)
ODD = """
@dataclass(frozen=True, kw_only=True)
class Unordered(Middle):
    def __call__(self, grid, *, importance, noise):
        chosen = super().__call__(grid, importance=importance, noise=noise)
        return everest.TokenSelection(chosen.visible.flip(1), chosen.predicted)


@dataclass(frozen=True, kw_only=True)
class Forgetful(Middle):
    def __call__(self, grid, *, importance, noise):
        pass


@dataclass(frozen=True, kw_only=True)
class Flat(Middle):
    def __call__(self, grid, *, importance, noise):
        chosen = super().__call__(grid, importance=importance, noise=noise)
        return everest.TokenSelection(chosen.visible[0], chosen.predicted[0])


@dataclass(frozen=True, kw_only=True)
class Unfinished(everest.strategies.Strategy):
    keep_ratio: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Opposite(everest.strategies.RedundancyRobust):
    gain: float = -1.0

    def importance(self, frames, embed):
        return self.gain * super().importance(frames, embed)


@dataclass(frozen=True, kw_only=True)
class Huber(everest.targets.PixelTargets):
    delta: float = 1.0

    def make(self, tubelet, pixels, frozen=None):
        return HuberModule(self, tubelet, pixels)


class HuberModule(everest.targets.PixelModule):
    def loss(self, prediction, values, scored):
        errors = torch.nn.functional.huber_loss(
            prediction, values, reduction="none", delta=self.settings.delta
        )
        return (errors.mean(dim=-1) * scored).sum() / scored.sum()


@dataclass(frozen=True, kw_only=True)
class Plain(Middle):
    other_ratio: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Counting(Middle):
    def __call__(self, grid, *, importance, noise):
        if noise.sum().item() < 0:
            raise AssertionError
        return super().__call__(grid, importance=importance, noise=noise)


@dataclass(frozen=True, kw_only=True)
class Wrong(Middle):
    def __call__(self, grid, *, importance, noise):
        return super().__call__(grid, importance=importance, noise=noise[(), 99])


class Bare(Middle):
    extra: float = 0.5


def function():
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that can be imported; its module `methods` has the code of the docs."""
    name = f"package_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / "site" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "methods.py").write_text(SHOWN + ODD)
    (folder / "broken.py").write_text("x = 1\nraise OSError('no licence')\n")
    (folder / "needy.py").write_text("import package_that_nobody_has\n")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.parent), str(ROOT)]))
    return name


def in_new_process(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that has imported nothing yet."""
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "everest_cli", *map(str, arguments)], capture_output=True, text=True
    )
    assert ended.returncode == code, (ended.stdout, ended.stderr)
    return ended


def strategy(stage: str, name: str, **settings: object) -> list[str]:
    """The options that select a strategy."""
    given = {"strategy": name, **settings}
    return sets(*(f"{stage}.selection.{key}={value}" for key, value in given.items()))


def target(name: str, **settings: object) -> list[str]:
    given = {"kind": name, **settings}
    return sets(*(f"pretrain.target.{key}={value}" for key, value in given.items()))


def test_a_recipe_names_a_strategy_and_a_target_of_another_package(package, recipe, tmp_path):
    path = f"{package}.methods"
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"base: {recipe}\n"
        f'pretrain: {{selection: {{strategy: "{path}:Middle", keep_ratio: 0.5}},'
        f' target: {{kind: "{path}:MeanColor", gain: 2}}}}\n'
        f'finetune: {{selection: {{strategy: "{path}:Middle", visible_ratio: null}}}}\n'
    )
    loaded = load_recipe(mine)
    selection, target = loaded.pretrain.selection, loaded.pretrain.target
    assert (type(selection).__name__, type(target).__name__) == ("Middle", "MeanColor")
    assert (selection.strategy, vars(selection)["keep_ratio"]) == (f"{path}:Middle", 0.5)
    assert vars(target) == {"kind": f"{path}:MeanColor", "gain": 2.0}
    assert vars(loaded.finetune.selection)["keep_ratio"] == 0.25  # the class's default, not the base's value
    (tmp_path / "again.yaml").write_text(dump_recipe(loaded))
    again = load_recipe(tmp_path / "again.yaml")
    assert (again.pretrain.selection, again.pretrain.target) == (selection, target)


@pytest.mark.slow  # six processes
def test_it_trains_and_its_checkpoints_load(package, recipe, tmp_path, clip_files):
    path = f"{package}.methods"
    first = strategy("pretrain", f"{path}:Middle", keep_ratio=0.5) + target(f"{path}:MeanColor", gain=2)
    later = strategy("finetune", f"{path}:Middle", visible_ratio="null")
    options = ["-r", recipe, "--gpus", "cpu", "-q"]
    encoder, run = tmp_path / "encoder", tmp_path / "run"
    in_new_process("pretrain", *options, *first, "-o", encoder)
    # The recipe of the fine-tuning does not name the strategy of the pre-training.
    in_new_process("finetune", *options, "--init", encoder, "-o", tmp_path / "usual")
    in_new_process("finetune", *options, *later, "--init", encoder, "-o", run)
    video = clip_files / "clip0.mp4"
    in_new_process("eval", "-c", run, "--gpus", "cpu", "-q")
    command = ["predict", video, "-c", run, "--json", "--gpus", "cpu", "-q"]
    rows = json.loads(in_new_process(*command).stdout)

    assert path not in sys.modules
    model = everest.load_model(run)
    assert type(model.strategy).__name__ == "Middle"
    assert everest.predict(model, video) == rows
    autoencoder = everest.load_model(encoder)
    out = autoencoder(autoencoder.transform(video))
    assert out.target_values.shape == (1, 12, 3)
    assert out.selection.visible.size(1) == 4


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        (
            "Counting",
            "noise.sum().item()",
            r"RuntimeError: .*without values .*, to count its tokens",
        ),
        ("Wrong", "noise[(), 99]", "IndexError: .*"),
    ],
)
def test_an_error_in_its_code_is_one_line_with_its_place(package, recipe, tmp_path, name, wrong, reason):
    path = f"{package}.methods"
    file = tmp_path / "site" / package / "methods.py"
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if wrong in text)
    options = ["-r", recipe, "-o", tmp_path / "run", "-q", *strategy("pretrain", f"{path}:{name}")]
    shown = in_new_process("pretrain", *options, "--gpus", "cpu", code=2).stderr
    assert re.fullmatch(rf"error: {re.escape(str(file))}:{line}: {reason}\n", shown)
    assert "Traceback" in in_new_process("--debug", "pretrain", *options, "--gpus", "cpu", code=2).stderr


def test_weights_import_only_known_modules(package, recipe, tmp_path, clip_files, monkeypatch):
    path, run = f"{package}.methods", tmp_path / "run"
    options = strategy("finetune", f"{path}:Middle", visible_ratio="null")
    called("finetune", "-r", recipe, "--init", "none", *options, "-o", run, "-q")
    model = everest.load_model(run)
    assert type(model.strategy).__name__ == "Middle"
    module = sys.modules[path]
    file, video = Path(module.__file__), clip_files / "clip0.mp4"
    source = file.read_text()
    for other, message in [
        (source.replace("class Middle", "if True:\n  class Middle"), rf"selection.*--import {path} "),
        ("class Middle:\n    pass\n", "is no class in the source of its module: if you trust it"),
        (None, "is of another package: install it, or put its folder on PYTHONPATH"),
    ]:
        monkeypatch.delitem(sys.modules, path, raising=False)
        file.unlink() if other is None else file.write_text(other)
        with pytest.raises(CheckpointError, match=rf"settings are not readable: .*{message}"):
            everest.load_model(run)
        assert path not in sys.modules
    file.write_text(source)
    (run / "recipe.yaml").rename(tmp_path / "moved.yaml")
    for arguments in (
        ["export", run, "--to", "onnx", "-o", tmp_path / "model.onnx"],
        ["visualize-mask", video, "--checkpoint", run, "-o", tmp_path / "masks"],
        ["extract", video, "--checkpoint", run, "-o", tmp_path / "features.npz", "-q"],
    ):
        sys.modules.pop(path, None)
        called(*arguments)
        assert sys.modules[path] is not module
    (tmp_path / "moved.yaml").rename(run / "recipe.yaml")
    for arguments in (
        ["plot", run, "--x", "gmacs", "-o", tmp_path / "curves.png"],
        ["eval", "-c", run, "--gpus", "cpu", "-q"],
    ):
        sys.modules.pop(path, None)
        called(*arguments)
    assert everest.load_model(run).strategy == load_recipe(run / "recipe.yaml").finetune.selection


def test_a_run_of_it_resumes(package: str, recipe: Path, tmp_path: Path):
    options = ["-r", recipe, "--gpus", "cpu", "-q", "-o", tmp_path / "run"]
    options += strategy("pretrain", f"{package}.methods:Middle")
    called("pretrain", *options)
    before = metrics(tmp_path / "run")
    called("pretrain", *options)
    assert metrics(tmp_path / "run") == before
    other = refused("pretrain", *options, *strategy("pretrain", "tube", mask_ratio=0.5), code=2)
    assert "holds a run with different settings" in other


def test_a_strategy_of_a_program_is_used_directly(package: str):
    module = __import__(f"{package}.methods").methods
    middle = module.Middle(keep_ratio=0.5)
    assert middle.strategy == f"{package}.methods:Middle"
    model = everest.create_model("vit-tiny", kind="pretrain", depth=1, frames=4, size=32, selection=middle)
    assert model.strategy == middle
    x = torch.randn(2, 3, 4, 32, 32)
    chosen = everest.select_tokens(x, strategy=middle.strategy, tubelet=(2, 8, 8), keep_ratio=0.5)
    assert chosen.visible.shape == (2, 4)
    with pytest.raises(RecipeError, match="has no fraction of tokens to change; define its method `keeping`"):
        everest.select_tokens(x, strategy=middle.strategy, tubelet=(2, 8, 8), keep=0.5)


def test_a_subclass_of_a_shipped_strategy_is_not_its_parent(package: str):
    opposite = __import__(f"{package}.methods").methods.Opposite()
    path = f"{package}.methods:Opposite"
    assert opposite.strategy == opposite.keeping(0.5).strategy == path
    x = torch.randn(2, 3, 8, 64, 64)
    kept = []
    for selection in (opposite, everest.strategies.RedundancyRobust(order="ascending")):
        torch.manual_seed(0)
        options = {"kind": "pretrain", "depth": 1, "frames": 8, "size": 64}
        model = everest.create_model("vit-tiny", **options, selection=selection)
        kept.append(model(x, noise=torch.linspace(0, 0.9, 64).expand(2, -1)).selection.predicted)
    assert torch.equal(*kept)
    overrides = [f"pretrain.selection.strategy={path}", "pretrain.selection.gain=-2"]
    recipe = load_recipe("small", overrides=overrides)
    assert recipe.pretrain.selection == opposite.__class__(gain=-2.0)
    assert f"strategy: {path}" in dump_recipe(recipe)


def test_a_loss_of_pixels_is_one_class(package: str, recipe: Path):
    kind = f"{package}.methods:Huber"
    settings = f"pretrain.target={{kind: '{kind}', normalize: token, delta: 0.5}}"
    spec = pretrain_spec(load_recipe(recipe, overrides=[settings]))
    spec = read_model_spec(spec.dump(), source=Path("x"))
    assert (spec.target.kind, spec.target.normalize, spec.target.delta) == (kind, "token", 0.5)
    out = spec.build()(torch.randint(256, (2, 3, 4, 32, 32), dtype=torch.uint8))
    error = F.huber_loss(out.prediction, out.target_values, delta=0.5, reduction="none").mean(dim=-1)
    loss_mask = out.selection.loss_mask()
    assert out.loss.item() == pytest.approx(error[loss_mask].mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere.at_all:Middle",
            "fails: ModuleNotFoundError: No module named 'nowhere'; install it, or put its folder on PYTHON",
        ),
        ("PACKAGE.nothing:Middle", r"No module named 'PACKAGE\.nothing'; install it"),
        (
            "PACKAGE.needy:X",
            r"importing 'PACKAGE\.needy' fails: ModuleNotFoundError: .*'package_that_nobody_has'",
        ),
        ("PACKAGE.broken:X", r"importing 'PACKAGE\.broken' fails: OSError: no licence \(broken\.py:2\)"),
        ("PACKAGE.methods:Nothing", r"module 'PACKAGE\.methods' has no 'Nothing'"),
        ("everest:Tube", "module 'everest' has no 'Tube'"),
        ("PACKAGE.methods:function", r"is no subclass of Strategy \(everest\.methods\.selection\)"),
        ("PACKAGE.methods:MeanColor", "is no subclass of Strategy"),
        ("PACKAGE.methods:Unfinished", "does not define __call__"),
        ("PACKAGE.methods:Bare", r"needs the decorator @dataclass\(frozen=True, kw_only=True\)"),
        ("PACKAGE.methods:Unordered", "chooses wrong tokens: selection.visible: ids must ascend"),
        ("PACKAGE.methods:Forgetful", r"Forgetful returns NoneType; return an everest\.TokenSelection"),
        ("PACKAGE.methods:Flat", r"Flat returns ids of shape \(\d+,\) and \(\d+,\), not \(B, K\) and"),
        ("PACKAGE methods:X", "is no import path such as package.module:Name"),
        (":", "':' is no import path"),
    ],
)
def test_what_is_no_strategy_is_a_line(package: str, recipe: Path, name: str, message: str):
    options = strategy("pretrain", f"'{name.replace('PACKAGE', package)}'")
    shown = refused("pretrain", "-r", recipe, *options, "--dry-run", code=2)
    assert re.search(f"^error: pretrain.selection.*{message}".replace("PACKAGE", package), shown), shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratoi": 0.5}, r"pretrain\.selection\.keep_ratoi: unknown key; did you mean 'keep_ratio'"),
        ({"keep_ratio": "much"}, r"pretrain\.selection\.keep_ratio: must be a number, not 'much'"),
        ({"keep_ratio": 2}, r"pretrain\.selection\.keep_ratio: must be at most 1\.0, not 2"),
        ({"other_ratio": 7.5}, r"pretrain\.selection\.other_ratio: must be from 0 to 1, not 7\.5"),
    ],
)
def test_its_keys_are_checked_like_others(package: str, recipe: Path, options: dict, message: str):
    name = "Plain" if "other_ratio" in options else "Middle"
    given = strategy("pretrain", f"{package}.methods:{name}", **options)
    shown = refused("pretrain", "-r", recipe, *given, "--dry-run", code=2)
    assert re.search(f"^error: {message}", shown), shown


def test_a_target_is_checked_too(package: str, recipe: Path):
    for name, settings, message in [
        ("MeanColor", {"gian": 2}, "pretrain.target.gian: unknown key; did you mean 'gain'"),
        ("MeanColor", {"gain": "x"}, "pretrain.target.gain: must be a number, not 'x'"),
        ("Middle", {}, f"'{package}.methods:Middle' is no subclass of Target (everest.methods.targets)"),
    ]:
        options = target(f"{package}.methods:{name}", **settings)
        assert message in refused("pretrain", "-r", recipe, *options, "--dry-run", code=2)


def test_fine_tuning_predicts_nothing(package: str, recipe: Path):
    options = strategy("finetune", f"{package}.methods:Middle", visible_ratio=0.125)
    shown = refused("finetune --init none --dry-run", "-r", recipe, *options, code=2)
    assert "finetune.selection.strategy: belongs to pre-training: fine-tuning encodes all kept" in shown


def test_a_module_to_import_must_exist():
    assert "No module named 'nowhere'; install it" in refused("--import", "nowhere.at_all", "doctor", code=2)


@dataclass(frozen=True, kw_only=True)
class WithExtraRatio(RedundancyRobust):
    strategy: str = "test_external:WithExtraRatio"
    extra_ratio: float = 3.0


def test_a_strategy_that_extends_one_of_everest_has_its_own_ratios_checked():
    assert [name for name, _ in WithExtraRatio().problems()] == ["extra_ratio"]
    problems = WithExtraRatio(keep_ratio=0.2, visible_ratio=0.3).problems()
    assert [name for name, _ in problems] == ["extra_ratio", "visible_ratio"]
