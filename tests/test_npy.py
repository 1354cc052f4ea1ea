"""Reading NumPy's files from several threads at once."""

from __future__ import annotations

import gc
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dpipe.common.npy import map_npy, read_npz


class Circle:
    """What only the collector ends, which lets another thread go on at that moment."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        time.sleep(0)


@pytest.fixture
def busy_collector() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    yield
    gc.set_threshold(*before)


def test_threads_read_at_the_same_time(tmp_path: Path, busy_collector: None) -> None:
    """Without turns Python 3.11 fails here within a second, where stacks differ in depth."""
    np.save(tmp_path / "one.npy", np.arange(12.0).reshape(3, 4))
    buffer = io.BytesIO()
    np.savez(buffer, one=np.arange(3), other=np.ones((2, 2)))
    content, failures = buffer.getvalue(), []

    def read(depth: int) -> None:
        if depth:
            return read(depth - 1)
        try:
            for _ in range(1500):
                Circle()
                assert set(read_npz(io.BytesIO(content))) == {"one", "other"}
                assert map_npy(tmp_path / "one.npy").shape == (3, 4)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(10 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
