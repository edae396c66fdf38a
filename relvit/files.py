"""Files that are whole or not there, on a disk that this machine sees or in an object store."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

from relvit.messages import unknown

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


@dataclass(frozen=True)
class RemotePath:
    """A place in an object store, with those parts of pathlib's interface that checkpoints and accounts need.

    place: "s3://bucket/folder/name"; options: what followed "?" in the URL, for instance "endpoint_override=...".
    Missing files raise FileNotFoundError, what the store refuses raises OSError.
    """

    place: str
    options: str = ""

    def __str__(self) -> str:
        return f"{self.place}?{self.options}" if self.options else self.place

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.place}/{name}", self.options)

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.place).name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.place).stem

    @property
    def parent(self) -> "RemotePath":
        """The folder that this is in."""
        return RemotePath(self.place.rpartition("/")[0], self.options)

    def with_name(self, name: str) -> "RemotePath":
        """Another name in the same folder."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "RemotePath":
        """The same name with another suffix."""
        return self.with_name(self.stem + suffix)

    def absolute(self) -> "RemotePath":
        """Itself: there is no relative place in a store."""
        return self

    def exists(self) -> bool:
        """Whether there is a file or a folder with something in it."""
        from pyarrow.fs import FileType

        return self._store.get_file_info(self._key).type != FileType.NotFound

    is_dir = exists

    def is_file(self) -> bool:
        """Whether there is a file."""
        from pyarrow.fs import FileType

        return self._store.get_file_info(self._key).type == FileType.File

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a store has no folders apart from the names of its files."""

    def read_bytes(self) -> bytes:
        """The content."""
        with self._store.open_input_stream(self._key) as stream:
            return stream.read()

    def read_text(self) -> str:
        """The content as text."""
        return self.read_bytes().decode()

    def write_bytes(self, payload: bytes | memoryview) -> None:
        """Write the whole file; a store shows it when it is complete."""
        with self._store.open_output_stream(self._key) as stream:
            stream.write(payload)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        if not missing_ok or self.exists():
            self._store.delete_file(self._key)

    def rename(self, target: "RemotePath") -> None:
        """Copy, then remove."""
        self._store.move(self._key, target._key)

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """What fits the pattern below this folder: "*" stands for any name of one part."""
        from pyarrow.fs import FileSelector

        depth = pattern.count("/") + 1
        selector = FileSelector(self._key, allow_not_found=True, recursive=depth > 1)
        for info in self._store.get_file_info(selector):
            relative = info.path.removeprefix(f"{self._key}/")
            if relative.count("/") + 1 == depth and _fits(relative, pattern):
                yield self / relative

    def iterdir(self) -> Iterator["RemotePath"]:
        """What is directly in this folder."""
        return self.glob("*")

    @property
    def _store(self) -> "FileSystem":
        scheme, _, rest = self.place.partition("://")
        return _store(f"{scheme}://{rest.split('/')[0]}", self.options)

    @property
    def _key(self) -> str:
        return self.place.partition("://")[2]


def _fits(relative: str, pattern: str) -> bool:
    return all(fnmatch(part, wanted) for part, wanted in zip(relative.split("/"), pattern.split("/")))


@cache
def _store(root: str, options: str) -> "FileSystem":
    from pyarrow.fs import FileSystem

    _reach(root.partition("://")[2], dict(parse_qsl(options)))
    try:
        return FileSystem.from_uri(f"{root}?{options}" if options else root)[0]
    except ValueError as error:
        raise OSError(f"{root} cannot be opened: {error}") from error


def _reach(bucket: str, options: dict[str, str]) -> None:
    """Raise OSError within 15 s if no store answers. What has answered once is later waited for much longer."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    try:
        S3FileSystem(
            connect_timeout=5,
            request_timeout=6,  # of silence
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=2),
            **options,
        ).get_file_info(bucket)
    except OSError as error:
        if "NETWORK_CONNECTION" in str(error):
            raise  # anything else is an answer, and whoever may not look at the bucket may still write to it


Location = Path | RemotePath

# What may follow "?" in a store's URL: how to reach a store that is not Amazon's own.
STORE_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")


def folder(text: str) -> Path:
    """A path of this machine as a user names it; "~" and "$NAME" are read as a shell reads them."""
    return Path(os.path.expanduser(os.path.expandvars(text)))  # noqa: PTH111 - Path's raises where there is no home


def location(text: str) -> Location:
    """A folder as a user names it: a path, or the URL of a place in a store, "s3://bucket/folder[?options]". "~" and
    "$NAME" are read as a shell reads them, which leaves them alone within --option=~/folder.

    The store's credentials are what its own tools use: the environment, a profile, the machine's role.
    Raises ValueError for a URL that names no place, an option that there is not, or a password, which every list of
    processes would show.
    """
    text = os.path.expandvars(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return folder(text)
    if scheme == "file":
        return Path(rest)
    place, _, options = rest.partition("?")
    bucket = place.split("/")[0]
    if scheme != "s3":
        raise ValueError(f"{scheme}://... is not supported: give a folder, or s3://BUCKET/FOLDER")
    given = dict(parse_qsl(options, keep_blank_values=True))
    if "@" in bucket or any(re.search("secret|key|token|password", name.lower()) for name in given):
        raise ValueError(
            f"{scheme}://... with credentials in it would be seen by everyone who lists processes: leave them out and "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if not bucket:
        raise ValueError(f"{text!r} names no bucket: {scheme}://BUCKET/FOLDER")
    for name in given:
        if name not in STORE_OPTIONS:
            raise ValueError(unknown(f"option of {scheme}://{place}", name, STORE_OPTIONS))
    if given.get("scheme", "https") not in ("http", "https"):
        raise ValueError(f"{scheme}://{place}: scheme must be http or https, not {given['scheme']!r}")
    return RemotePath(f"{scheme}://{place.rstrip('/')}", options)


def sqlite_file(uri: str) -> Path | None:
    """The file that a database's URI names; None where it names none, as a server's."""
    scheme, _, rest = uri.partition(":///")
    database = rest.partition("?")[0]
    return Path(database) if database and scheme.partition("+")[0] == "sqlite" else None


def artifacts_beside(uri: str, experiment: str) -> Path | None:
    """Where the artifacts of an experiment in a SQLite file lie: beside it, not where a sweep was started. None for
    another store."""
    database = sqlite_file(uri)
    return database.absolute().parent / "mlruns" / quote(experiment, safe="") if database else None


def moved_from(uri: str, experiment: str, location: str) -> str:
    """The location of artifacts that MLflow has for an experiment, where its SQLite file has been moved or copied with
    the artifacts beside it and MLflow would write to the old place; else empty."""
    now = artifacts_beside(uri, experiment)
    if now is None or not now.is_dir() or location == now.as_uri():
        return ""
    ours = "/".join(now.as_uri().rsplit("/", 2)[1:])  # else somebody has chosen the place
    return location if location.endswith(f"/{ours}") else ""


def write_atomic(path: Location, payload: bytes | memoryview, permit: Callable[[], object] = lambda: None) -> None:
    """Write a file so that a reader, or a machine that lost power, sees the whole of it or nothing.

    permit: called at the last moment before the file can be seen; what it raises keeps it from that.
    """
    if isinstance(path, RemotePath):
        permit()
        path.write_bytes(payload)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        permit()
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def remove_leftovers(folder: Location) -> None:
    """Remove the checkpoints that were set aside as damaged and those that a killed process was writing, each as large
    as a whole one. Only where nobody else writes checkpoints now."""
    for pattern in ("*.damaged", ".*.pt.*.tmp"):
        found: list[Location] = [*folder.glob(pattern)]
        for path in found:
            path.unlink(missing_ok=True)
