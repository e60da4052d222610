"""Checkpoints of the Hugging Face hub, named `hf:OWNER/NAME`: downloaded, or taken from the local cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from everest.errors import CheckpointError
from everest.system.files import write_error
from everest.system.processes import is_main

PREFIX = "hf:"
_TEXTS = ["*.json", "README.md", "LICENSE*"]
_SAFE = [*_TEXTS, "*.safetensors"]
_PICKLED = [*_TEXTS, "*.bin", "*.pth", "*.pt"]  # only if the repository has no safetensors file


class Unreachable(CheckpointError):
    """Neither the hub nor the local cache can provide the checkpoint now; a later attempt may succeed."""


def warn_on_main(text: str) -> None:
    """Show the user a line, once over all processes."""
    if is_main():
        logging.getLogger("everest").warning("%s", text)


def is_hub_name(name: str | Path) -> bool:
    """Whether `name` is the name of a checkpoint of the hub."""
    return str(name).startswith(PREFIX)


def fetch(name: str, *, notify: Callable[[str], None] = warn_on_main) -> Path:
    """Download the files of `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`; returns their local folder.

    If the hub does not answer (no network, HF_HUB_OFFLINE=1), the files come from the local cache in HF_HOME
    or HF_HUB_CACHE. `notify` gets a line with the license and the revision.

    Raises:
        CheckpointError: no such repository, or no permission to read it.
        Unreachable: neither the hub nor the cache can provide it.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    repository, _, text = name.removeprefix(PREFIX).partition("@")
    revision = text or None
    try:
        validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError("a name without an owner")
    except HFValidationError as error:
        raise CheckpointError(f"{name}: not a name of a repository; write {PREFIX}OWNER/NAME") from error
    try:
        folder = _download(repository, revision)
    except _NoAnswerError as no_answer:
        try:
            folder = Path(
                snapshot_download(repository, revision=revision, allow_patterns=_SAFE, local_files_only=True)
            )
        except (LocalEntryNotFoundError, OSError, ValueError) as error:
            raise Unreachable(
                f"{PREFIX}{repository}: not complete in the cache {constants.HF_HUB_CACHE}, and the hub does "
                f"not answer ({no_answer}); connect, or fetch it elsewhere by `hf download {repository}`"
            ) from error
    notify(f"{name}: license {license_of(folder) or 'not stated'}, revision {folder.name[:12]}")
    return folder


class _NoAnswerError(Exception):
    """The hub does not answer."""


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
        raise _NoAnswerError(_first_line(error)) from error
    files = [entry.rfilename for entry in info.siblings or ()]
    safe = any(file.endswith(".safetensors") for file in files)
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=_SAFE if safe else _PICKLED)
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise write_error(Path(str(error.filename)), error) from error
        raise Unreachable(
            f"{name}: the download was interrupted ({_first_line(error)}); run again to resume it"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__)[:120]


def license_of(folder: Path) -> str | None:
    """The license in the front matter of a folder's README.md; None if it states none."""
    from huggingface_hub.repocard import metadata_load

    try:
        card = metadata_load(folder / "README.md") or {}
    except Exception:  # no README, or one whose front matter cannot be parsed: neither may stop a download
        return None
    name = card.get("license")
    if name == "other":
        name = card.get("license_name") or name
    if isinstance(name, list):
        name = ", ".join(map(str, name))
    return str(name) if name else None
