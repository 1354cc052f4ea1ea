"""Checkpoints: what each pass decided, for a run that goes on.

Covers: keeping the result of a pass with everything it follows from, and judging later whether it
still holds.
Does not cover: which runs may use it (`dpipe.pipeline`), the ranks (`dpipe.rankstore`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpipe.common.plain import digest_of, plain, restored
from dpipe.errors import InputError
from dpipe.model.inventory import CHECKPOINT, pass_file
from dpipe.model.records import PassResult
from dpipe.runfolder.files import BROKEN, SCHEMA_VERSION, Files


@dataclass(frozen=True)
class Saved:
    """A pass that is kept.

    Attributes
    ----------
    result
        What the pass decided.
    key
        Names the result and all it follows from, for the ``depends`` of the next pass.
    extra
        What else was kept with it, in the types of JSON.
    """

    result: PassResult
    key: str
    extra: Mapping[str, Any]


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

    def save(
        self,
        number: int,
        depends: Mapping[str, Any],
        result: PassResult,
        extra: Mapping[str, Any] | None = None,
    ) -> Saved:
        """Keep what a pass decided, for `load` of a later run.

        Parameters
        ----------
        number
            The pass.
        depends
            A flat record of everything the result follows from: version, input fingerprint,
            options, the key of the pass before.
        result, extra
            What the pass decided, and what else a later run wants to know of it.
        """
        decided = {"depends": plain(depends), "result": plain(result)}
        saved = Saved(result, digest_of(decided), plain(extra or {}))
        body = {**decided, "schema": SCHEMA_VERSION, "key": saved.key, "extra": saved.extra}
        self._files.write_json(pass_file(number), {"sha256": digest_of(body), "body": body})
        return saved

    def load(self, number: int, depends: Mapping[str, Any]) -> Saved | Stale | Damaged | None:
        """What the pass decided in an earlier run, if it still holds.

        Returns
        -------
        Saved or Stale or Damaged or None
            `Stale` names every field of `depends` that differs; `Damaged` (treat it as absent)
            says what is wrong with the file; None when there is no checkpoint.
        """
        name = pass_file(number)
        if not (self._files.path / name).exists():
            return None
        try:
            stored = self._files.read_json(name)
            body = stored["body"]
            if stored["sha256"] != digest_of(body):
                return Damaged(f"{name} does not have the checksum it was written with")
            if body.get("schema") != SCHEMA_VERSION:
                return Stale(("schema",))
            if changed := _changed(body["depends"], plain(depends)):
                return Stale(changed)
            result = restored(PassResult, body["result"])
            return Saved(result, str(body["key"]), dict(body["extra"]))
        except (InputError, *BROKEN) as error:
            return Damaged(f"{name} cannot be read ({error})")

    def clear(self) -> None:
        """Forget every pass, so that a run starts from nothing."""
        for file in (self._files.path / CHECKPOINT).glob("pass-*"):
            file.unlink(missing_ok=True)


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that differ, or that only one of two records has."""
    absent = object()
    names = dict.fromkeys([*now, *then])
    return tuple(name for name in names if now.get(name, absent) != then.get(name, absent))
