"""Clips of any length in a request: their windows in batches, the outputs of each in order."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from avvp_dist.serving.batches import Outputs, run_clips
from avvp_dist.serving.requests import ClipRequest


def test_clips_of_any_number_and_length_get_their_own_outputs() -> None:
    seen: list[tuple[int, ...]] = []

    def run(streams: dict[str, Tensor], lengths: Tensor) -> Outputs:
        seen.append(tuple(streams["audio"].shape))
        assert not any(streams["audio"][n, k:].any() for n, k in enumerate(lengths.tolist()))
        return streams["audio"].numpy(), lengths.numpy()

    lengths = [1 + n % 9 for n in range(50)]
    clips = [
        ClipRequest(None, {"audio": np.full((length, 3), n + 1, np.float32)})
        for n, length in enumerate(lengths)
    ]
    outputs = list(run_clips(run, clips, 4))
    windows = [-(-length // 4) for length in lengths]
    assert seen == [(64, 4, 3), (sum(windows) - 64, 4, 3)]
    for number, (rows, own) in enumerate(outputs):
        assert rows.shape == (windows[number], 4, 3) and set(rows[rows > 0]) == {number + 1}
        assert own.tolist() == [min(4, lengths[number])] * windows[number]
