"""dpipe: which columns of a wide table can go, because another column already says the same."""

from __future__ import annotations
