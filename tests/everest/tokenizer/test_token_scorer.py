import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tokenizer_of
from torch import Tensor

from everest.config.tokenizer_settings import TOKENIZERS
from everest.tokenizer.layers import TokenScorer, soft_topk_mask, top_k


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed))


@pytest.fixture
def scorer() -> TokenScorer:
    torch.manual_seed(0)
    return TokenScorer((2, 4), (32, 64))


def test_a_score_depends_on_the_frames_of_two_time_indices_only(scorer: TokenScorer):
    frames = clip(1, 3, 32, 16, 16)
    whole = scorer(frames)
    for first in (1, 7, 14):  # the time indices at the ends of a 16-frame chunk among them
        alone = scorer(frames[:, :, 2 * first - 2 : 2 * first + 2])
        assert torch.allclose(alone[:, 1], whole[:, first], atol=1e-6)


def test_no_place_in_time_is_preferred(scorer: TokenScorer):
    """Zero padding in time gave the ends of a clip most of what is kept, before any training."""
    frames = clip(16, 3, 16, 32, 32)
    kept = top_k(scorer(frames)[:, 1:].flatten(1), 44, seeded())
    counts = torch.bincount((kept // 64).flatten(), minlength=7) / kept.numel()
    assert counts.max() < 2 / 7


def test_no_position_in_space_is_preferred(scorer: TokenScorer):
    """A uniform image that changes color changes equally everywhere, also at the edges."""
    colors = clip(1, 3, 16, 1, 1).expand(-1, -1, -1, 32, 32)
    scores = scorer(colors)
    assert torch.allclose(scores, scores[..., :1, :1].expand_as(scores), atol=1e-5)


def test_the_first_time_index_copies_the_second_in_float32_under_autocast(scorer: TokenScorer):
    frames = clip(2, 3, 16, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = scorer(frames)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, scorer(frames))
    assert torch.equal(scores[:, 0], scores[:, 1])


def test_gradients_reach_the_scorer_with_a_still_clip_in_the_batch():
    torch.manual_seed(0)
    model = tokenizer_of(TOKENIZERS["tiny"], chunk=8, keep=0.2)
    frames = clip(2, 3, 8, 16, 16)
    frames[1] = frames[1, :, :1]
    model(frames, generator=seeded()).loss.backward()
    norms = [parameter.grad.norm() for parameter in model.scorer.parameters() if parameter.grad is not None]
    assert len(norms) == 4
    assert all(norm.isfinite() for norm in norms)
    assert norms[0] > 0


def test_ties_are_broken_by_the_generator_and_not_by_place():
    equal = torch.zeros(1, 448)
    first, again, other = (top_k(equal, 45, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().numel() == 45
    assert first.max() > 200  # the first 45 positions are what a plain top-k gives


@given(st.integers(0, 99), st.integers(1, 40), st.sampled_from([1, 3, 1000]))
def test_exactly_k_are_kept_whatever_the_ties(seed, k, distinct):
    scores = torch.randint(distinct, (3, 40), generator=seeded(seed)).float()
    mask = soft_topk_mask(scores, k, seeded(seed))
    assert mask.sum(dim=1).tolist() == [k] * 3
    assert ((mask == 0) | (mask == 1)).all()
    lowest_kept = scores.masked_fill(mask == 0, torch.inf).min(dim=1).values
    highest_left = scores.masked_fill(mask == 1, -torch.inf).max(dim=1).values
    assert (lowest_kept >= highest_left).all()


def test_the_scale_of_the_scores_changes_neither_choice_nor_strength():
    """It drifts while the scorer is trained, and the temperature may not drift with it."""
    weights = clip(2, 50, seed=1)
    scores = clip(2, 50).mul(10).requires_grad_()
    gradients, masks = [], []
    for scale in (1.0, 1000.0):
        mask = soft_topk_mask(scores * scale, 10, seeded())
        gradients.append(torch.autograd.grad((mask * weights).sum(), scores)[0])
        masks.append(mask)
    assert torch.equal(masks[0], masks[1])
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def test_a_token_that_was_missed_rises():
    """The gradient of a score is the decrease of the loss if the token were kept."""
    scores = torch.linspace(1, 0, 20)[None].repeat(64, 1).requires_grad_()
    wanted = 6  # just below the five that are kept
    mask = soft_topk_mask(scores, 5, seeded())
    (-mask[:, wanted]).sum().backward()
    assert scores.grad.mean(dim=0).argmin() == wanted
