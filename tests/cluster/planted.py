"""A planted corpus: what is heard and what is seen have one hidden cause, which labels name.

Each clip shows one class in some of its seconds. Its sound and its picture each hold a weak code of
the class, and strong noise that neither the other modality nor the next second shares. So few
labelled clips are learnt by heart, and unlabelled ones tell what belongs together.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avvp_dist.packing.simulation import write_annotations
from avvp_dist.shards.schema import LLP_CLASSES

SNIPPETS, CLASSES = 10, 8


def write_planted(
    out: Path, sizes: dict[str, int], *, dim: int = 64, code: float = 2.5, seed: int = 0
) -> Path:
    """Write `features_SPLIT.npz` of each split and the `AVVP_*.csv` of train, val and test.

    Args:
        code: length of a class's code; the noise has the standard deviation 1 in each dimension.
    """
    rng = np.random.default_rng(seed)
    codes = rng.standard_normal((2, CLASSES, dim))
    codes *= code / np.linalg.norm(codes, axis=-1, keepdims=True)
    out.mkdir(parents=True, exist_ok=True)
    corpus = {}
    for split, count in sizes.items():
        ids = [f"PL{split[:2]}{number:07d}_0_{SNIPPETS}" for number in range(count)]
        events = np.zeros((count, SNIPPETS, 2, len(LLP_CLASSES)), bool)
        for clip in events:
            length = int(rng.integers(4, SNIPPETS + 1))
            onset = int(rng.integers(0, SNIPPETS - length + 1))
            clip[onset : onset + length, :, rng.integers(CLASSES)] = True
        streams = {
            name: events[:, :, row, :CLASSES] @ codes[row]
            + rng.standard_normal((count, SNIPPETS, dim))
            for row, name in enumerate(("audio", "visual"))
        }
        np.savez(
            out / f"features_{split}.npz",
            filenames=np.array(ids),
            **{name: stream.astype(np.float16) for name, stream in streams.items()},
        )
        corpus[split] = list(zip(ids, events, strict=True))
    write_annotations(out, corpus)
    return out
