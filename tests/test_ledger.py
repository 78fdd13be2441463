"""The ledger: a piece is finished for one digest only, and a cut-off piece is recognised."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.ledger import Ledger


def test_a_piece_is_finished_from_the_digest_it_was_made_from(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "records")
    assert ledger.finished("shard-000000", "a") is None
    ledger.finish("shard-000000", "a", clips=7)
    assert Ledger(tmp_path / "records").finished("shard-000000", "a") == {"clips": 7}
    assert ledger.finished("shard-000000", "b") is None
    assert ledger.finished("shard-000001", "a") is None


def test_a_piece_that_was_cut_off_goes_on_and_a_changed_one_begins_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert not ledger.begin("pretrain", "a")
    assert ledger.finished("pretrain", "a") is None
    assert ledger.begin("pretrain", "a")
    assert not ledger.begin("pretrain", "b")
    ledger.finish("pretrain", "b")
    assert not ledger.begin("pretrain", "c")
    assert ledger.finished("pretrain", "b") is None, "it is being made anew"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"made_from": 1}', '"a"'])
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.path("shard").write_text(text)
    assert ledger.finished("shard", "a") is None
    assert not ledger.begin("shard", "a")
