"""A run folder at a URL: worked on in a local copy, brought up to date pass by pass.

Covers: the copy that a run works on and leaves at the URL, the copy a finished run is read from.
Does not cover: what is in a run folder (`dpipe.runfolder`); the ranks, which have a place of their
own (``--scratch-dir``) and are not copied; two runs at one URL at the same time, which a lock on
the copy cannot keep apart.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec

from dpipe.common.credentials import check_url, is_url, safe_reason
from dpipe.errors import InputError, ResourceError
from dpipe.model.events import Emit, Event, PassDone, silent
from dpipe.model.inventory import MANIFEST
from dpipe.options.kinds import expanded
from dpipe.runfolder import RunFolder


@contextlib.contextmanager
def reading(
    folder: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """The local path of a finished run: its own, or that of a copy which goes afterwards.

    Raises
    ------
    InputError
        When nothing lies at the URL, or it cannot be read.
    """
    folder = os.fspath(folder)
    if not is_url(folder):
        yield expanded(folder)
        return
    with _copy_of(folder, storage_options) as copy:
        if not copy.fetch():
            raise InputError(f"there is no run at {folder}.")
        yield str(copy.path)


@contextlib.contextmanager
def working(
    folder: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    into: str | None = None,
) -> Iterator[tuple[str, Emit]]:
    """The local path a run works in, and an observer of it.

    For a URL that is a copy, fetched first, so that an interrupted run continues. The observer
    brings the URL up to date after every pass, and the end of the block does, however it ends.

    Parameters
    ----------
    folder, storage_options
        A run folder, which may be a URL, and what opens it.
    into
        A folder for the copy, which then stays; without one the copy goes when the block ends.

    Raises
    ------
    InputError, ResourceError
        When the URL cannot be read, or written.
    """
    folder = os.fspath(folder)
    if not is_url(folder):
        yield expanded(folder), silent
        return
    with _copy_of(folder, storage_options, into) as copy:
        copy.fetch()

        def watch(event: Event) -> None:
            if isinstance(event, PassDone) and not event.reused:
                copy.send()

        try:
            yield str(copy.path), watch
        except BaseException:
            with contextlib.suppress(ResourceError):  # which would hide what went wrong before
                copy.send()
            raise
        copy.send()


@contextlib.contextmanager
def _copy_of(
    url: str, storage_options: Mapping[str, Any] | None, into: str | None = None
) -> Iterator[_Copy]:
    with contextlib.ExitStack() as stack:
        if into is None:
            into = stack.enter_context(tempfile.TemporaryDirectory(prefix="dpipe-"))
        # Of the same name, which the report shows.
        local = Path(into) / url.rstrip("/").rsplit("/", 1)[-1]
        local.mkdir()
        yield _Copy(url, storage_options or {}, local)


class _Copy:
    """A local folder and the URL whose content it shares."""

    def __init__(self, url: str, storage_options: Mapping[str, Any], path: Path) -> None:
        check_url(url)
        self.path = path
        self._url = url
        self._options = storage_options
        self._sent: dict[str, tuple[int, int]] = {}
        try:
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **self._options)
        except Exception as error:  # whatever the storage library of this URL raises
            reason = safe_reason(error, self._options)
            raise InputError(f"cannot store results at {url} ({reason}).") from None
        self._root = root.rstrip("/")

    def fetch(self) -> bool:
        """Copy what lies at the URL here; whether there was anything."""
        try:
            paths = self._fs.find(self._root) if self._fs.exists(self._root) else []
            for path in paths:
                name = path.removeprefix(self._root).lstrip("/")
                if ".." in name.split("/"):
                    raise InputError(f"{self._url} holds {name!r}, which no run wrote.")
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(path, str(target))
        except InputError:
            raise
        except Exception as error:
            reason = safe_reason(error, self._options)
            raise InputError(f"{self._url} cannot be read ({reason}).") from None
        self._sent = self._state()
        return bool(paths)

    def send(self) -> None:
        """Copy what is new here to the URL, and delete there what is gone here."""
        now = self._state()
        try:
            # The manifest last, which vouches for all others.
            for name in sorted(now, key=lambda name: (name == MANIFEST, name)):
                if self._sent.get(name) != now[name]:
                    self._fs.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
                    self._fs.put_file(str(self.path / name), f"{self._root}/{name}")
                    self._sent[name] = now[name]
            for name in self._sent.keys() - now.keys():
                self._fs.rm_file(f"{self._root}/{name}")
                del self._sent[name]
        except Exception as error:
            raise ResourceError(
                f"{self._url} cannot be written ({safe_reason(error, self._options)}); "
                "run the same command again to continue."
            ) from None

    def _state(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file worth copying, by name."""
        versions = {}
        for name in RunFolder(self.path).portable():
            facts = (self.path / name).stat()
            versions[name] = (facts.st_size, facts.st_mtime_ns)
        return versions
