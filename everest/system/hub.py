"""`hf:OWNER/NAME`: a checkpoint of the Hugging Face hub, downloaded, or taken from the local cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from everest.errors import CheckpointError, UserError
from everest.system.files import write_error
from everest.system.launch import is_main

PREFIX = "hf:"
UNSTATED = "not stated"
_TEXTS = ["*.json", "README.md", "LICENSE*"]
_SAFE = [*_TEXTS, "*.safetensors"]
_PICKLED = [*_TEXTS, "*.bin", "*.pth", "*.pt"]  # only where nothing safe is offered


class Unreachable(CheckpointError):
    """Neither the hub nor the local cache has it now; another time they may."""


def show(text: str) -> None:
    """A line for the user, once over all processes."""
    if is_main():
        logging.getLogger("everest").warning("%s", text)


def is_hub_name(name: str | Path) -> bool:
    """Whether `name` stands for a checkpoint of the hub."""
    return str(name).startswith(PREFIX)


def fetch(name: str, *, notify: Callable[[str], None] = show) -> Path:
    """The local folder with the files of `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`.

    When the hub does not answer (no network, HF_HUB_OFFLINE=1) the local cache serves; HF_HOME and
    HF_HUB_CACHE say where it is. `notify` is told licence and revision.

    Raises:
        CheckpointError: no such repository, or no right to read it.
        Unreachable: neither hub nor cache has it.
    """
    repository, revision = _parsed(name)
    try:
        folder = _download(repository, revision)
    except _NoAnswer as error:
        folder = _cached(repository, revision, why=str(error))
    notify(f"{name}: licence {licence_of(folder) or UNSTATED}, revision {folder.name[:12]}")
    return folder


class _NoAnswer(Exception):
    """The hub cannot be asked."""


def _parsed(name: str) -> tuple[str, str | None]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise CheckpointError(f"{name}: no name of a repository; write {PREFIX}OWNER/NAME") from error
    if repository.count("/") != 1:
        raise CheckpointError(f"{name}: no name of a repository; write {PREFIX}OWNER/NAME")
    return repository, revision or None


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name = f"{PREFIX}{repository}"
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=10)
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name}: accept its terms at https://huggingface.co/{repository}, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: has no revision '{revision}'") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such repository, or a private one: check the name, or `hf auth login`"
        ) from error
    except Exception as error:  # whichever HTTP library this version of the hub's client uses
        raise _NoAnswer(_first_line(error)) from error
    files = [entry.rfilename for entry in info.siblings or ()]
    safe = any(file.endswith(".safetensors") for file in files)
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=_SAFE if safe else _PICKLED)
        )
    except Exception as error:
        raise _download_error(name, error) from error


def _download_error(name: str, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return write_error(Path(str(error.filename)), error)
    return Unreachable(f"{name}: the download broke off ({_first_line(error)}); run again to go on")


def _cached(repository: str, revision: str | None, *, why: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=_SAFE, local_files_only=True)
        )
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise Unreachable(
            f"{PREFIX}{repository}: not whole in the cache {constants.HF_HUB_CACHE}, and the hub does not "
            f"answer ({why}); connect, or fetch it elsewhere by `hf download {repository}`"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__)[:120]


def licence_of(folder: Path) -> str | None:
    """The licence in the front matter of a folder's README.md, None when it states none."""
    from huggingface_hub.repocard import metadata_load

    try:
        card = metadata_load(folder / "README.md") or {}
    except Exception:  # no README, or one whose front matter cannot be parsed: neither may stop a download
        return None
    licence = card.get("license")
    if licence == "other":
        licence = card.get("license_name") or licence
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    return str(licence) if licence else None
