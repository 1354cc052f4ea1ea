"""Tables as tests open them: with plain options, or refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from dpipe.errors import InputError
from dpipe.options import Options
from dpipe.table import open_table

PLAIN = Options()
SKIP = Options(on_bad_file="skip")


def refusal(sources: Any, options: Options = PLAIN) -> str:
    """The one sentence with which a table is refused."""
    with pytest.raises(InputError) as caught:
        open_table(sources, options=options)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message
