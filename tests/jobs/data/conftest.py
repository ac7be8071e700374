"""Fixtures of the tests of `rlhf data`."""

import pytest

from rlhf_ray.data import pieces


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1 << 16)
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 1 << 14)
