"""Stores in the cloud, read through a local cache of bounded size: `s3://`, `gs://`, `hf://`, `memory://`, by fsspec.

A remote store is a local folder that fills up as it is read: everything else (checks, hashes, clips, caches) works on
that folder as on any other. A missing file is fetched before it is read, whole or not at all; when the folder grows
beyond its bound, the files read longest ago go. Readers hold a shared lock while they read, and files go under an
exclusive one, so that several processes share the cache and none ever reads a file's absence as zeros.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.datasets import layout
from vjepa_mpc.datasets.arrays import columns, read_spec
from vjepa_mpc.datasets.store import ZarrStore

CACHE_BYTES = 10 << 30
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/+(?P<rest>.+)")
_KEPT = 0.8  # of the bound, after files have gone: not every fetch has to look for some
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "abfs": "adlfs", "az": "adlfs"}


def address(place: Path | str) -> str | None:
    """`scheme://rest` when `place` is a remote address (also one that became a `Path` and lost a slash), else None."""
    match = _ADDRESS.fullmatch(str(place))
    if match is None or Path(place).exists():
        return None
    return f"{match['scheme']}://{match['rest'].rstrip('/')}"


def cache_folder() -> Path:
    """Where remote stores are kept unless another folder is named: below `XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vjepa-mpc" / "stores"


class RemoteStore(ZarrStore):
    """A reader of a store at a remote address. Make it with `open_remote`; `ZarrStore.open` does for an address."""

    def __init__(self, url: str, folder: Path, files: Any, root: str, most: int) -> None:
        self.url, self._files, self._root, self._most = url, files, root, most
        self._lock = folder.with_name(f"{folder.name}.lock")
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder
        self._size = sum(size for _, size, _ in self._held())
        self._before = self._known()
        self._fetch("zarr.json", again=True)
        super().__init__(folder, read_spec(folder))

    @property
    def name(self) -> str:
        return self.url

    def refresh(self) -> None:
        """See the episodes published since. The table is fetched first, and then what covers it."""
        self._files.invalidate_cache()  # of listings: some file systems read by the sizes they saw first
        arrays = [f"{array}/zarr.json" for array in columns(self.spec)]
        for name in (str(layout.ENDS), str(layout.EPISODES), *arrays):
            self._fetch(name, again=True)
        now = self._known()
        if now[0] != self._before[0] or not now[1].startswith(self._before[1]):
            # A store only grows: another one lies at the address now, and the old one's chunks are not its.
            with self._locked(fcntl.LOCK_EX):
                for file, _, _ in self._held():
                    file.unlink(missing_ok=True)
            self._size = 0
        self._before = now
        super().refresh()

    def _known(self) -> tuple[bytes, bytes]:
        """The description and the list of episodes that the cached chunks belong to."""
        files = (self.path / "zarr.json", self.path / layout.EPISODES)
        return tuple(file.read_bytes() if file.exists() else b"" for file in files)  # type: ignore[return-value]

    def _slice(self, name: str, rows: slice) -> np.ndarray:
        dimensions = self._arrays[name].ndim
        wanted = [str(layout.chunk_file(Path(name), number, dimensions)) for number in self._chunks(rows)]
        with self._locked(fcntl.LOCK_SH):
            for file in wanted:
                self._fetch(file)
            values = super()._slice(name, rows)
        if self._size > self._most:
            self._make_room()
        return values

    def _fetch(self, name: str, again: bool = False) -> None:
        """Bring a file into the cache, unless it is there. One that is not at the address is left to the reader, who
        says which one is missing."""
        target = self.path / name
        if target.exists() and not again:
            os.utime(target)  # read just now: it goes last
            return
        try:
            data = self._files.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            target.unlink(missing_ok=True)
            return
        except Exception as error:  # each file system has its own
            raise _unreachable(f"{self.url}/{name}", error) from error
        with atomic_path(target) as temporary:
            temporary.write_bytes(data)
        if target.name.startswith("c."):
            self._size += len(data)

    def _held(self) -> list[tuple[Path, int, float]]:
        """The chunks in the cache: where, how large, when last read."""
        found = []
        for file in self.path.rglob("c.*"):
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                found.append((file, status.st_size, status.st_mtime))
        return found

    def _make_room(self) -> None:
        """Remove the files read longest ago, unless somebody is reading just now (then another time)."""
        with contextlib.suppress(BlockingIOError), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            held = sorted(self._held(), key=lambda item: item[2])
            self._size = sum(size for _, size, _ in held)
            for file, size, _ in held:
                if self._size <= _KEPT * self._most:
                    break
                file.unlink(missing_ok=True)
                self._size -= size

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with self._lock.open("a") as stream:
            fcntl.flock(stream, kind)
            yield

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a remote store does not travel to other processes; open it there by its address")


def fetch_log(url: str, folder: Path | None = None, most: int = CACHE_BYTES, **options: Any) -> Path:
    """Bring a whole log (a file or a folder of them) from `url` into the cache, and return where it lies now.

    Files that are there with the same size are not fetched again. `InputError`: nothing is there, or it has more than
    `most` bytes, or more than the disk has room for.
    """
    files, root = _file_system(url, options)
    try:
        found = {name: int(about["size"] or 0) for name, about in files.find(root, detail=True).items()}
        found = {name: size for name, size in found.items() if not name.endswith("/")}  # a console's mark of a folder
    except FileNotFoundError:
        found = {}
    except Exception as error:  # each file system has its own
        raise _unreachable(url, error) from error
    if not found:
        raise InputError(f"{url} does not exist; check the address.")
    place = folder or _place(url, root).parent.parent / "logs" / _place(url, root).name
    place.parent.mkdir(parents=True, exist_ok=True)
    total, free = sum(found.values()), shutil.disk_usage(place.parent).free
    if total > min(most, free):
        raise InputError(
            f"{url} has {total / 1e9:.1f} GB, and {min(most, free) / 1e9:.1f} may be kept in {place.parent}; copy it "
            "to a disk with room and import it from there."
        )
    for name, size in found.items():
        relative = name[len(root) :].lstrip("/")
        target = place / relative if relative else place
        if not target.resolve().is_relative_to(place.resolve()):
            raise InputError(f"{url} names the file {relative!r}, which lies outside of it; such a log is not read.")
        if not (target.is_file() and target.stat().st_size == size):
            _fetch_file(files, name, target, f"{url}/{relative}")
    return place


def _fetch_file(files: Any, name: str, target: Path, place: str) -> None:
    """Bring the file `name` to `target`, whole or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{place} lies below another file, which no disk can hold; rename one of them.") from error
    with atomic_path(target) as temporary:
        try:
            files.get_file(name, str(temporary))
        except Exception as error:
            raise _unreachable(place, error) from error


def _file_system(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The file system of an address, and the place in it."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        files, root = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(scheme)
        way = f"pip install {package}" if package else "use an address that fsspec knows"
        raise InputError(f"{url} cannot be opened ({first_line(error)}); {way}.") from error
    files.invalidate_cache()  # file systems live on from call to call: what lies there now counts
    return files, str(root)


def _place(url: str, root: str) -> Path:
    """Where the cache of an address is kept."""
    return cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{PurePosixPath(root).name}"


def _unreachable(place: str, error: Exception) -> InputError:
    return InputError(f"{place} cannot be read ({first_line(error)}); check address, network and credentials.")


def open_remote(url: str, folder: Path | None = None, most: int = CACHE_BYTES, **options: Any) -> RemoteStore:
    """Open the store at `url` for reading.

    `folder`: where its files are cached (None: a folder of its own below `cache_folder()`); at most about `most` bytes
    of them are kept. `options` go to fsspec's file system (endpoint, credentials, anonymous access, ...), which also
    reads its own configuration. `InputError`: a package is missing, or the address cannot be read.
    """
    files, root = _file_system(url, options)
    place = folder or _place(url, root)
    try:
        return RemoteStore(url, place, files, root, most)
    except InputError as error:
        if not (place / "zarr.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            raise InputError(f"{url} is no trajectory store that can be read ({first_line(error)}).") from error
        raise
