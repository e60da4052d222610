"""Downloads from the Hugging Face hub, and checkpoint names that are not paths (`hf:`, `timm:`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from everest.errors import CheckpointError, RecipeError
from everest.system.events import Notify
from everest.system.files import absolute_keeping_links, write_errors
from everest.system.processes import warn_on_main

HUB_PREFIX: Final = "hf:"
TIMM_PREFIX: Final = "timm:"  # an image model from the hub, or from a file: timm:NAME=FILE
PREFIXES: Final = (HUB_PREFIX, TIMM_PREFIX)  # prefixes of checkpoints that are not files
_SAFE_FILES: Final = ["*.json", "README.md", "LICENSE*", "*.safetensors"]
_PICKLED_FILES: Final = [*_SAFE_FILES, "*.bin", "*.pth", "*.pt"]  # if there is no safetensors file
# Heuristic. huggingface_hub waits without limit, where a firewall drops the packets to the hub.
ANSWER_SECONDS: Final = 10.0


class HubUnreachable(CheckpointError):
    """Neither the hub nor the local cache can provide the checkpoint now; a later attempt may succeed."""


def split_timm(name: str) -> tuple[str, Path | None]:
    """Split `timm:NAME` or `timm:NAME=FILE` into the model and the file."""
    model, equals, file = name.removeprefix(TIMM_PREFIX).partition("=")
    if equals and not file:
        raise RecipeError(f"{name}: name the file of the weights after '='")
    return model, Path(file) if file else None


def absolute_name(name: str | Path) -> str:
    """Return the name of a checkpoint with its path, if any, made absolute."""
    text = str(name)
    if not text:
        raise RecipeError("no weights are named; give a run folder, a file, hf:OWNER/NAME or timm:NAME")
    if not text.startswith(PREFIXES):
        return str(absolute_keeping_links(Path(text)))
    model, file = split_timm(text) if text.startswith(TIMM_PREFIX) else (text, None)
    return text if file is None else f"{TIMM_PREFIX}{model}={absolute_keeping_links(file)}"


def fetch(name: str, *, notify: Notify = warn_on_main) -> Path:
    """Download the files of `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`; returns their local folder.

    If the hub does not answer (no network, HF_HUB_OFFLINE=1), the files come from the local cache in HF_HOME
    or HF_HUB_CACHE. `notify` gets a line with the license and the revision.
    """
    from huggingface_hub import HfApi, constants, errors, snapshot_download
    from huggingface_hub.utils import validate_repo_id

    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    try:
        validate_repo_id(repository)
        _owner, _model = repository.split("/")
    except ValueError as error:
        raise CheckpointError(f"{name}: not a name of a repository; write {HUB_PREFIX}OWNER/NAME") from error
    download = partial(snapshot_download, repository, revision=revision or None)
    refusals = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)  # also gated repositories
    cause = None
    try:
        try:  # the hub also shows a gated repository
            HfApi().model_info(repository, revision=revision or None, timeout=ANSWER_SECONDS)
        except refusals:
            raise
        except Exception as error:
            cause = _first_line(error)
            download = partial(download, local_files_only=True)
        folder = Path(download(allow_patterns=_SAFE_FILES))
        if not any(folder.rglob("*.safetensors")):
            folder = Path(download(allow_patterns=_PICKLED_FILES))
    except refusals as error:
        raise CheckpointError(
            f"{name}: the hub refuses it ({_first_line(error)}); check the name and the revision, or "
            f"accept its terms at https://huggingface.co/{repository} and run `hf auth login`"
        ) from error
    except Exception as error:  # the HTTP library depends on the version of the hub's client
        if cause:
            raise HubUnreachable(
                f"hf:{repository}: not complete in the cache {constants.HF_HUB_CACHE}, and the hub does "
                f"not answer ({cause}); connect, or fetch it elsewhere by `hf download {repository}`"
            ) from error
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            with write_errors(Path(str(error.filename))):
                raise
        raise HubUnreachable(
            f"{name}: the download was interrupted ({_first_line(error)}); run again to resume it"
        ) from error
    notify(f"{name}: license {read_license(folder) or 'not stated'}, revision {folder.name[:12]}")
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__)[:120]


def read_license(folder: Path) -> str | None:
    """The license in the front matter of a folder's README.md; None if it states none."""
    from huggingface_hub.repocard import metadata_load

    try:
        card = metadata_load(folder / "README.md") or {}
    except Exception:  # a missing or malformed README must not stop a download
        return None
    name = card.get("license")
    if name == "other":
        name = card.get("license_name") or name
    if isinstance(name, list):
        name = ", ".join(map(str, name))
    return str(name) if name else None
