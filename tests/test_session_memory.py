"""Memory of a process as a session reads it, limits it and gives it back.

Does not cover: what workers of a run take (`test_memory`).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from sessions import MIB

from dpipe.session import session as module
from dpipe.session import worker
from dpipe.session.worker import give_memory_back, process_memory


def test_a_worker_without_a_limit_counts_its_share_of_its_host() -> None:
    def facts(limit: int | None, host: str) -> Any:
        return SimpleNamespace(limit=limit, host=host, host_memory=1000)

    smallest = module._smallest_limit
    assert smallest([facts(None, "a"), facts(None, "a"), facts(700, "b")]) == 500
    assert smallest([facts(None, "a"), facts(300, "b")]) == 300
    assert smallest([facts(None, "a")]) == 1000


def test_the_peak_of_a_process_outlives_its_memory() -> None:
    code = """
        from dpipe.session.worker import AWAKE, expect_restart, process_memory
        block = b"x" * 300_000_000
        del block
        rss, peak = process_memory()
        print(peak - rss > 250_000_000)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


def test_memory_is_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(*_: object, **__: object) -> None:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", no_proc)
        peak = worker._peak_elsewhere()
    assert peak >= 20 * MIB
    assert process_memory()[0] <= process_memory()[1]


def test_only_a_process_that_has_grown_looks_at_every_object() -> None:
    class Circle:
        def __init__(self) -> None:
            self.itself = self

    def is_collected(baselines: dict[int, int] | None) -> bool:
        seen = weakref.ref(Circle())
        give_memory_back(baselines)
        return seen() is None

    now = process_memory()[0]
    gc.collect()
    gc.disable()
    try:
        assert not is_collected({os.getpid(): now})
        assert is_collected({os.getpid(): now - 2**26})
        assert is_collected({})  # of a process that came later nothing is known
        assert is_collected(None)
    finally:
        gc.enable()
