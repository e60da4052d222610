"""Remote files and folders (`s3://`, `hf://`, …), read by fsspec.

`RemotePath` has the methods of `pathlib.Path` that lists and folders need, so that callers do not depend on
where files are. It holds no connection: fsspec makes one for each process, because connections do not
survive a fork.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, cast

from everest.errors import DataError, EnvironmentProblem

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LOCAL_PREFIX: Final = "file://"
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Values that storages report and that change with a file, the most reliable first.
_VERSIONS: Final = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
_PROTOCOL_FIX: Final = "use file, s3, hf or another protocol of fsspec"
_ACCESS_FIX: Final = "check the address, the network and the credentials (S3: AWS_ACCESS_KEY_ID and \
AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public bucket; hf: `hf auth login`)"


@dataclass(frozen=True, order=True, slots=True)
class RemotePath:
    """A file or folder of a storage. Methods raise OSError like the methods of `Path`.

    DataError: the storage does not answer or refuses access.
    EnvironmentProblem: the package for the protocol is missing.
    """

    url: str
    entry_type: str | None = field(default=None, compare=False, repr=False)  # file or directory, if known

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        protocol, path = self.url.split("://", 1)
        joined = posixpath.normpath(posixpath.join("/", path, name))  # ".." ends at the root
        return RemotePath(f"{protocol}://{joined if path.startswith('/') else joined[1:]}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.url).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.url).suffix

    @property
    def parent(self) -> RemotePath:
        return self / ".."

    def resolve(self) -> RemotePath:
        """Return the path itself: URLs are absolute, and storages have no links."""
        return self

    absolute = resolve

    def exists(self) -> bool:
        return self._type() is not None

    def is_file(self) -> bool:
        return self._type() == "file"

    def is_dir(self) -> bool:
        return self._type() == "directory"

    def _type(self) -> str | None:
        if self.entry_type is not None:
            return self.entry_type
        try:
            with self._filesystem() as (storage, path):
                return storage.info(path)["type"]
        except FileNotFoundError:
            return None

    def iterdir(self) -> Iterator[RemotePath]:
        """List the current content of the folder, even if it was listed before."""
        with self._filesystem() as (storage, path):
            storage.invalidate_cache(path)
            entries = storage.ls(path, detail=True)
        for entry in entries:
            if entry["name"].strip("/") != path.strip("/"):  # S3 may hold an empty object for the folder
                name = PurePosixPath(entry["name"]).name
                yield RemotePath(f"{self.url}/{name}", entry_type=entry["type"])

    def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
        """Read the file, or only its bytes from `start` to `end`."""
        with self._filesystem() as (storage, path):
            return cast("bytes", storage.cat_file(path, start=start, end=end))

    def read_text(self, encoding: str, errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    @lru_cache(maxsize=32768)  # noqa: B019 the kept paths are small
    def version(self) -> tuple[int, str]:
        """Size in bytes (-1 if unknown) and a text that changes with the file; kept from the first call."""
        with self._filesystem() as (storage, path):
            info = storage.info(path)
        size = info.get("size")
        versions = (str(info[key]) for key in _VERSIONS if info.get(key) is not None)
        return -1 if size is None else size, next(versions, "")

    @contextmanager
    def _filesystem(self) -> Iterator[tuple[AbstractFileSystem, str]]:
        """Yield the storage and the path in it; translate the errors of storages."""
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations, registry

        try:
            yield url_to_fs(self.url)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.url) from error
        except MemoryError:
            raise
        except ImportError as error:
            s3 = 'needs the package s3fs: pip install "everest-video[remote]"'
            fix = s3 if self.url.startswith("s3") else f"{error}, by pip"
            raise EnvironmentProblem(f"{self.url}: {fix}") from error
        except Exception as error:  # each storage has different errors
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            is_known = self.url.partition("://")[0] in {*known_implementations, *registry}
            fix = _ACCESS_FIX if is_known else _PROTOCOL_FIX
            raise DataError(f"{self.url}: {reason}; {fix}") from error


Location = Path | RemotePath


def parse_location(text: str | Path) -> Location:
    """Return the file or folder that a path or URL names. `file://` is this machine."""
    text = str(text)
    if text.startswith(LOCAL_PREFIX):
        return Path(text.removeprefix(LOCAL_PREFIX))
    if not is_url(text):
        return Path(text)
    protocol, path = text.split("://", 1)
    return RemotePath(f"{protocol}://{path.rstrip('/')}")


def is_url(text: str) -> bool:
    """Whether a text begins with a protocol."""
    return _URL.match(text) is not None


def join_location(folder: Location, text: str) -> Location:
    """Join a relative path to a folder; an absolute path or a URL does not depend on the folder."""
    if is_url(text) or Path(text).is_absolute():
        return parse_location(text)
    return folder / text
