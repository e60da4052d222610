import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.tokenizer_settings import TOKENIZERS, TokenizerConfig
from everest.tokenizer.loss import Adversary, BlurredHalving, Discriminator

TINY = TokenizerConfig(stem=(2, 4), channels=4, multipliers=(1,), time_down=(), blocks=1, decoder_blocks=1)


class Linear(nn.Module):
    """A logit that is a weighted sum of a clip's values."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, clips: Tensor) -> Tensor:
        return clips.flatten(1) @ self.weight


def clips(number: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(number, 3, 8, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def adversary() -> Adversary:
    torch.manual_seed(0)
    return Adversary(Discriminator(TINY, frames=8, size=(32, 32)))


def test_a_halving_is_the_binomial_filter_at_every_second_place():
    impulse = torch.zeros(1, 2, 4, 8, 8)
    impulse[0, 1, 1, 3, 4] = 1.0
    one, three = 1 / 8, 3 / 8
    # Place p of the result looks at 2p - 1, 2p, 2p + 1 and 2p + 2.
    along_t = torch.tensor([three, one])
    along_h, along_w = torch.tensor([0, three, one, 0]), torch.tensor([0, one, three, 0])
    expected = torch.zeros(1, 2, 2, 4, 4)
    expected[0, 1] = torch.einsum("t,h,w->thw", along_t, along_h, along_w)
    halved = BlurredHalving(time=True)(impulse)
    assert torch.equal(halved, expected)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_has_a_discriminator_of_its_size(name: str):
    with torch.device("meta"):
        config = TOKENIZERS[name]
        network = Discriminator(config, frames=16, size=(224, 224))
        assert network(torch.empty(2, 3, 16, *config.scaled((224, 224)))).shape == (2,)


def test_losses_of_a_linear_discriminator_are_those_by_hand():
    weight = torch.randn(12, generator=torch.Generator().manual_seed(0))
    real, reconstructed = torch.rand(2, 3, 2, 3, 1, 2).unbind()
    adversary = Adversary(Linear(weight.clone()))
    found = adversary.discriminator_losses(real, reconstructed)
    on_real, on_reconstructed = real.flatten(1) @ weight, reconstructed.flatten(1) @ weight
    logistic = -(torch.sigmoid(on_real).log().mean() + torch.sigmoid(-on_reconstructed).log().mean())
    assert found.logistic.item() == pytest.approx(logistic.item(), rel=1e-5)
    assert found.r1.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)
    assert found.total.item() == pytest.approx((logistic + 10 * weight.square().sum()).item(), rel=1e-5)
    generator = -torch.sigmoid(on_reconstructed).log().mean()
    assert adversary.generator_loss(reconstructed).item() == pytest.approx(generator.item(), rel=1e-5)
    free = Adversary(adversary.discriminator, r1_weight=0.0).discriminator_losses(real, reconstructed)
    assert free.total == free.logistic == found.logistic  # the penalty is reported and teaches nothing
    assert free.r1 == found.r1


def test_the_losses_leave_the_discriminator_or_the_clips_alone(adversary: Adversary):
    weights = list(adversary.discriminator.parameters())
    reconstructed = clips().requires_grad_()
    adversary.generator_loss(reconstructed).backward()
    assert reconstructed.grad is not None
    assert reconstructed.grad.abs().max() > 0
    assert all(weight.grad is None and weight.requires_grad for weight in weights)
    real, reconstructed = clips().requires_grad_(), clips(seed=1).requires_grad_()
    adversary.discriminator_losses(real, reconstructed).total.backward()
    assert real.grad is None
    assert reconstructed.grad is None
    assert all(weight.grad is not None for weight in weights)


def test_all_is_float32_under_autocast(adversary: Adversary):
    real, reconstructed = clips(), clips(seed=1)
    plain = adversary.discriminator_losses(real, reconstructed)
    generator = adversary.generator_loss(reconstructed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.conv3d(real, torch.rand(1, 3, 1, 1, 1)).dtype == torch.bfloat16
        cast = adversary.discriminator_losses(real, reconstructed)
        assert torch.equal(adversary.generator_loss(reconstructed), generator)
    assert all(torch.equal(*losses) for losses in zip(cast, plain, strict=True))
