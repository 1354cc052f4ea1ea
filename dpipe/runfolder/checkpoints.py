"""Checkpoints: what each pass decided, for a run that goes on.

Covers: keeping the result of a pass with everything it follows from, and judging later whether it
still holds.
Does not cover: which runs may use it (`dpipe.pipeline`), the ranks (`dpipe.rankstore`).
"""

from __future__ import annotations

import re
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dpipe.errors import InputError
from dpipe.model import Drop, PassResult
from dpipe.registry import Reason
from dpipe.runfolder.files import BROKEN, CHECKPOINT, Files, same, unreadable
from dpipe.runfolder.plain import digest_of, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Stale:
    """A pass checkpoint that was made under other conditions; `fields` names what changed."""

    fields: tuple[str, ...]


@dataclass(frozen=True)
class Damaged:
    """A pass checkpoint that cannot be trusted; it counts as absent, and `reason` says why."""

    reason: str


class Checkpoints:
    """The checkpoints of a run folder.

    Parameters
    ----------
    files
        The folder.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._folder = files.path / CHECKPOINT

    def save(
        self,
        number: int,
        depends: Mapping[str, Any],
        result: PassResult,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> str:
        """Keep what a pass decided, for `load` of a later run.

        Parameters
        ----------
        number
            The pass.
        depends
            A flat record of everything the result follows from: version, input fingerprint,
            options, the key of the pass before.
        result, arrays
            What the pass decided, and arrays a later pass needs.

        Returns
        -------
        str
            The key of this result, for the ``depends`` of the next pass.
        """
        named = dict(arrays or {})
        if any(array.dtype.hasobject for array in named.values()):
            raise TypeError(f"pass {number} would need pickle: an array holds Python objects.")
        # The arrays get a name of their own each time, so that the pass kept before stays whole
        # until the record below takes its place.
        file_name = f"pass-{number}-{uuid.uuid4().hex[:12]}.npz"
        with self._files.replacing(f"{CHECKPOINT}/{file_name}") as pending:
            _write_npz(pending.file, named)
        decided = {"depends": plain(depends), "result": plain(result)}
        key = digest_of(decided)
        stored = {"file": file_name, "sha256": pending.digest, "bytes": pending.size}
        body = {**decided, "key": key, "arrays": stored}
        self._files.write_json(_pass_file(number), {"sha256": digest_of(body), "body": body})
        # Only now is the checkpoint of an earlier run of this pass no longer needed.
        for old in self._folder.glob(f"pass-{number}-*.npz"):
            if old.name != file_name:
                old.unlink(missing_ok=True)
        return key

    def load(self, number: int, depends: Mapping[str, Any]) -> PassResult | Stale | Damaged | None:
        """What the pass decided in an earlier run, if it still holds.

        Returns
        -------
        PassResult or Stale or Damaged or None
            `Stale` names every field of `depends` that differs; `Damaged` (treat it as absent)
            says what is wrong with the files; None when there is no checkpoint.
        """
        body = self._read(number)
        if body is None or isinstance(body, Damaged):
            return body
        now, then = plain(depends), body["depends"]
        missing = object()
        changed = [k for k in [*now, *then] if now.get(k, missing) != then.get(k, missing)]
        if changed:
            return Stale(tuple(dict.fromkeys(changed)))
        try:
            return _pass_result(body["result"])
        except BROKEN as error:
            return Damaged(f"{_pass_file(number)} holds no result of a pass ({error})")

    def key(self, number: int) -> str | None:
        """The key of the stored result of a pass, None without a sound one."""
        body = self._read(number)
        return str(body["key"]) if isinstance(body, dict) else None

    def load_arrays(self, number: int) -> dict[str, NDArray[Any]]:
        """Read the arrays kept with a pass that `load` accepted.

        Raises
        ------
        InputError
            When they are missing or broken.
        """
        body = self._read(number)
        if not isinstance(body, dict):
            reason = body.reason if body else "there is none"
            raise InputError(f"the checkpoint of pass {number} cannot be read: {reason}.")
        path = self._folder / body["arrays"]["file"]
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except BROKEN as error:
            raise unreadable(path, error) from error

    def clear(self) -> None:
        """Forget every pass, so that a run starts from nothing."""
        for file in self._folder.glob("pass-*"):
            file.unlink(missing_ok=True)

    def _read(self, number: int) -> dict[str, Any] | Damaged | None:
        name = _pass_file(number)
        if not (self._files.path / name).exists():
            return None
        try:
            stored = self._files.read_json(name)
            body = stored["body"]
            if stored["sha256"] != digest_of(body):
                return Damaged(f"{name} does not have the checksum it was written with")
            arrays = body["arrays"]
            if not re.fullmatch(rf"pass-{number}-[0-9a-f]+\.npz", arrays["file"]):
                return Damaged(f"{name} names a file that is not its own")
            if not same(self._folder / arrays["file"], arrays["sha256"], arrays["bytes"]):
                return Damaged(f"{arrays['file']} is missing or was altered")
        except (InputError, *BROKEN) as error:
            return Damaged(f"{name} cannot be read ({error})")
        return dict(body)


def _pass_file(number: int) -> str:
    return f"{CHECKPOINT}/pass-{number}.json"


def _pass_result(stored: Mapping[str, Any]) -> PassResult:
    return PassResult(
        number=int(stored["number"]),
        name=str(stored["name"]),
        kept=tuple(map(str, stored["kept"])),
        drops=tuple(_drop(drop) for drop in stored["drops"]),
        communities={str(k): int(v) for k, v in stored["communities"].items()},
        near_threshold=tuple((str(a), str(b), float(v)) for a, b, v in stored["near_threshold"]),
    )


def _drop(stored: Mapping[str, Any]) -> Drop:
    numbers = {k: None if stored[k] is None else float(stored[k]) for k in ("value", "threshold")}
    return Drop(**{**stored, **numbers, "reason": Reason(stored["reason"])})


def _write_npz(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """As ``numpy.savez`` does, with any name for an array and no way to pickle one."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
