import psutil
import pytest
import torch
from foreign import videomae_config
from small_runs import json_of, logged, run, sets

from everest.config.model import BACKBONES

pytestmark = pytest.mark.slow

SMALL = ("data.size=32", "data.frames=4", "data.classes=null", "data.num_classes=2", "train.workers=0")
RUN = ("train.save_every=100", "train.keep_states=1")
STEPS = ("pretrain.steps=10", "pretrain.warmup_steps=0", "pretrain.batch_size=4", "pretrain.base_lr=6e-3")
# Eight tokens: with the shares of long clips none would be visible.
SELECTION = ("pretrain.selection.keep_ratio=0.75", "pretrain.selection.visible_ratio=0.5")
TUNE = ("finetune.steps=2", "finetune.batch_size=2", "eval.clips=1", "eval.crops=1", "finetune.mixup=0")


@pytest.mark.parametrize("backbone", ["vit-s", "vit-b", "vit-l", "vit-h"])
def test_weights_of_transformers_are_continued_tuned_and_used(backbone, tmp_path, clip_files):
    transformers = pytest.importorskip("transformers")
    size = BACKBONES[backbone]
    needed = 32 * 12 * size.width**2 * size.depth  # bytes: measured, 32 for each weight of a block
    if psutil.virtual_memory().available < needed:
        pytest.skip(f"{backbone} needs {needed / 2**30:.0f} GiB of free memory")
    config = videomae_config(size, image_size=32, num_frames=4, use_mean_pooling=False)
    torch.manual_seed(0)
    transformers.VideoMAEForPreTraining(config).save_pretrained(tmp_path / "videomae")
    run("convert", tmp_path / "videomae", "-o", tmp_path / "videomae.safetensors")
    shared = ["--recipe", "custom", "--data", clip_files, "--gpus", "cpu", "-q"]
    settings = [f"model.backbone={backbone}", *SMALL, *RUN, *STEPS, *SELECTION, *TUNE]
    options = [*shared, *sets(*settings)]
    run("pretrain", *options, "--init", tmp_path / "videomae.safetensors", "-o", tmp_path / "continued")
    losses = logged(tmp_path / "continued")
    assert len(losses) == 10
    assert sum(losses[-3:]) < sum(losses[:3])
    run("finetune", *options, "--init", tmp_path / "continued", "-o", tmp_path / "tuned")
    (predicted,) = json_of("predict", clip_files / "clip0.mp4", "-c", tmp_path / "tuned")
    assert len(predicted["predictions"]) == 2
