"""Settings of partial training: each problem in one line that names the key."""

from __future__ import annotations

import pytest

from everest.config.recipe import load_recipe
from everest.errors import RecipeError

SMALL = "model.depth=4"
RANK = "finetune.lora.rank=8"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.freeze=first:5", SMALL], "finetune.freeze: first:5 is more than the encoder's 4 blocks"),
        (["finetune.freeze=first:0"], "finetune.freeze: must be none, encoder, embedding or first:N"),
        (["finetune.freeze=head"], "finetune.freeze: must be none, encoder, embedding or first:N"),
        (["finetune.freeze=3"], "finetune.freeze: must be none, encoder, embedding or first:N"),
        (
            [RANK, "finetune.freeze=encoder"],
            "finetune.freeze: is encoder, and finetune.lora freezes the whole",
        ),
        (
            [RANK, "finetune.freeze=first:2"],
            "finetune.freeze: is first:2, and finetune.lora freezes the whole",
        ),
        (["finetune.lora.layers=[qkv, value]"], "finetune.lora.layers.1: unknown value 'value'"),
        (["pretrain.lora.layers=[]"], "pretrain.lora.layers: must have at least 1 entry"),
        (["finetune.lora.layers=[qkv, fc1, qkv]"], "finetune.lora.layers: names qkv twice"),
        (["pretrain.lora.rank=769"], "pretrain.lora.rank: 769 is more than the encoder's width of 768"),
        (["finetune.lora.rank=-1"], "finetune.lora.rank: must be at least 0"),
        (["finetune.lora.dropout=1"], "finetune.lora.dropout: must be less than 1"),
        (["finetune.lora.alpha=0"], "finetune.lora.alpha: must be more than 0"),
        (["finetune.lora.ranks=8"], "finetune.lora.ranks: unknown key; did you mean 'rank'?"),
    ],
)
def test_problems_are_one_line_each(overrides: list[str], message: str):
    with pytest.raises(RecipeError) as caught:
        load_recipe("ucf101", overrides=overrides)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("freeze", ["none", "embedding", "first:1", "first:4", "encoder"])
def test_layers_are_counted_from_the_embedding(freeze: str):
    recipe = load_recipe("ucf101", overrides=[f"finetune.freeze={freeze}", SMALL])
    expected = {"none": 0, "embedding": 1, "first:1": 2, "first:4": 5, "encoder": 5}
    assert recipe.finetune.frozen_layers(4) == expected[freeze]


def test_keys_of_adapters_without_a_rank_have_no_effect():
    notices: list[str] = []
    load_recipe(
        "ucf101",
        overrides=["finetune.lora.alpha=8", RANK, "pretrain.lora.dropout=0.1"],
        notify=notices.append,
    )
    assert notices == ["pretrain.lora.dropout has no effect if pretrain.lora.rank is 0"]
