"""Public weights that everest reads: the table of `everest weights`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from everest.config.yaml import read_yaml
from everest.errors import RecipeError

TABLE: Final = Path(__file__).with_suffix(".yaml")
USE_BY_KIND: Final = {
    "autoencoder": "encoder and decoder, for --init of pretrain and finetune, extract and probe",
    "encoder": "the encoder, for --init of train, pretrain and finetune, extract and probe",
    "classifier": "encoder and head, for predict, eval, extract, probe and --init",
}


@dataclass(frozen=True, kw_only=True)
class PublicWeights:
    """Weights that someone published; the table itself explains its keys."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str
    method: str
    backbone: str
    data: str
    license: str
    gives: Literal["autoencoder", "encoder", "classifier"]
    layout: str
    page: str | None = None
    frames: int = 16
    size: int = 224
    first_for: str | None = None  # the task for which these weights are the first to try
    tested: str | None = None  # how the real weights were tested; None: only random weights were
    settings: Annotated[list[str], Field(alias="set")] = field(default_factory=list)

    @property
    def source(self) -> str:
        """The value of a command's option: a name that is downloaded, or the result of `convert`."""
        return self.name if self.page is None else "converted.safetensors"


def read_public_weights() -> list[PublicWeights]:
    """Read the table of public weights."""
    return TypeAdapter(list[PublicWeights]).validate_python(read_yaml(TABLE.read_text("utf-8"), str(TABLE)))


def find_public_weights(name: str) -> PublicWeights:
    """Return the entry with a name, which may omit the prefix or the owner."""
    for weights in read_public_weights():
        short_name = weights.name.partition(":")[2]
        if name and name in (weights.name, short_name, short_name.rpartition("/")[2]):
            return weights
    similar = [weights.name for weights in read_public_weights() if name.lower() in weights.name.lower()]
    hint = f"; it has {', '.join(similar)}" if name and similar else ""
    raise RecipeError(f"{name}: not in the table, which `everest weights list` prints{hint}")
