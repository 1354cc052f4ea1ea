"""The passes and reasons that all else refers to.

Covers: `dpipe.model.registry`: reasons read back from their text, entries that name what there is.
Does not cover: what passes do (`test_pipeline`), a pass of one's own (`test_extending_passes`).
"""

from __future__ import annotations

import importlib.util

import pytest

from dpipe.model.records import Drop
from dpipe.model.registry import PASSES, Pass, Reason
from dpipe.options import Options


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_read_back_from_its_text_with_details_or_without(reason: Reason) -> None:
    assert Reason.of(Drop("a", 1, reason).text) is reason
    assert Reason.of(Drop("a", 1, reason, detail="of b (2), redundant (1)").text) is reason
    assert Reason.of(f"{reason}ly") is None


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_belongs_to_a_pass_and_has_its_words(reason: Reason) -> None:
    assert any(reason in entry.reasons for entry in PASSES.values())
    assert reason.label
    assert reason.clause


@pytest.mark.parametrize("entry", PASSES.values(), ids=lambda entry: entry.name)
def test_an_entry_names_a_module_and_an_option(entry: Pass) -> None:
    assert PASSES[entry.number] is entry
    assert importlib.util.find_spec(entry.module) is not None
    assert entry.threshold is None or hasattr(Options(), entry.threshold)
