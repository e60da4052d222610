from dataclasses import replace

import pytest
import torch
from tiny_models import tokenizer_of
from torch import Tensor

from everest.config.tokenizer_settings import TOKENIZERS
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer

TINY = replace(TOKENIZERS["tiny"], channels=8)


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> AdaptiveTokenizer:
    torch.manual_seed(0)
    return tokenizer_of(TINY, chunk=8, keep=0.25).eval()


@pytest.mark.parametrize("name", ["magvit-b", "magvit-b-half", "lite"])
def test_tokens_of_224_pixels_are_those_of_a_vit(name: str):
    with torch.device("meta"):
        model = tokenizer_of(TOKENIZERS[name], chunk=16, keep=0.375)
        frames = torch.empty(1, 3, 16, 224, 224)
    z = model.encoder(model.scaled(frames))
    assert model.tubelet == (2, 16, 16)
    assert z.shape == (1, 6, 8, 14, 14)
    assert model.decoder(z).shape == model.scaled(frames).shape


def test_every_part_of_the_output_has_one_row_a_token(model: AdaptiveTokenizer):
    output = model.encode(clip(2, 3, 16, 16, 24))
    assert output.latent.shape == output.values.shape == (2, 8 * 4 * 6, 6)
    assert output.codes.shape == (2, 8 * 4 * 6)
    assert output.scores.shape == (2, 8, 4, 6)
    assert torch.equal(model.quantizer.decode(output.codes), output.values)


def test_a_clip_of_128_frames_is_its_windows_joined():
    torch.manual_seed(0)
    model = tokenizer_of(TINY, chunk=16, keep=0.25).eval()
    frames = clip(1, 3, 128, 8, 8)
    whole = model.encode(frames)
    chunks = [model.encode(chunk) for chunk in frames.split(16, dim=2)]
    assert torch.allclose(whole.values, torch.cat([chunk.values for chunk in chunks], dim=1), atol=1e-5)
    assert torch.equal(whole.codes, torch.cat([chunk.codes for chunk in chunks], dim=1))
    later = [chunk.scores[:, 1:] for chunk in chunks]  # the first time index of a chunk has none before it
    inside = whole.scores.unflatten(1, (8, 8))[:, :, 1:]
    assert torch.allclose(inside, torch.stack(later, dim=1), atol=1e-6)


def test_of_each_window_the_first_time_index_and_a_fraction_of_the_others_is_kept(model: AdaptiveTokenizer):
    mask = model.select_tokens(clip(3, 8, 4, 4), keep=0.25)
    assert mask.shape == (3, 8, 4, 4)
    chunks = mask.unflatten(1, (2, 4))
    assert (chunks[:, :, 0] == 1).all()
    assert chunks[:, :, 1:].sum(dim=(2, 3, 4)).tolist() == [[12, 12]] * 3  # a quarter of 3 x 16


def test_steps_with_all_tokens_leave_the_scorer_as_it_is_and_in_the_graph(model: AdaptiveTokenizer):
    frames = clip(1, 3, 16, 16, 16)
    out = model(frames, all_tokens=True)
    assert (out.mask == 1).all()
    assert torch.equal(out.frames, model.reconstruct(frames, mask=torch.ones(1, 8, 4, 4)))
    assert torch.equal(out.frames, model.reconstruct(frames, keep=1))
    out.loss.backward()
    gradients = [parameter.grad for parameter in model.scorer.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_token_that_is_left_out_says_nothing(model: AdaptiveTokenizer):
    """Its zeros are a code, the same whatever was there."""
    frames, mask = clip(1, 3, 8, 16, 16), torch.zeros(1, 4, 4, 4)
    assert torch.equal(model.reconstruct(frames, mask=mask), model.reconstruct(1 - frames, mask=mask))
    mask[:, 2, 1, 1] = 1
    assert not torch.equal(model.reconstruct(frames, mask=mask), model.reconstruct(1 - frames, mask=mask))


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = tokenizer_of(TINY, chunk=8, keep=0.25, checkpointing=checkpointing)
        model(clip(1, 3, 8, 16, 16)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_precision_below_float32_changes_no_choice(model: AdaptiveTokenizer):
    frames = clip(2, 3, 8, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = model(frames)
    assert torch.equal(lower.mask, model(frames).mask)
    assert lower.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (clip(1, 3, 12, 16, 16), "divide into chunks of 8 frames"),
        (clip(1, 3, 8, 18, 16), "tokens of 4 x 4 pixels"),
        (clip(3, 8, 16, 16), r"expected float \(B, 3, T, H, W\)"),
        (clip(1, 3, 8, 16, 16).byte(), r"expected float .* got torch.uint8"),
    ],
)
def test_other_clips_are_refused(model: AdaptiveTokenizer, frames: Tensor, message: str):
    for use in (model.encode, model, lambda frames: model.reconstruct(frames, mask=torch.ones(1, 4, 4, 4))):
        with pytest.raises(ValueError, match=message):
            use(frames)
