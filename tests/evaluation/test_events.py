"""Events from decided snippets."""

from __future__ import annotations

import numpy as np

from avvp_dist.evaluation.events import events_in


def test_runs_of_snippets_become_events_in_order() -> None:
    decided = np.zeros((5, 2, 2), bool)
    decided[[0, 1, 4], 0, 1] = True  # heard twice, to the end
    decided[:, 1, 0] = True
    prob = np.linspace(0, 0.95, 20, dtype=np.float32).reshape(5, 2, 2)
    found = events_in(decided, prob, ["Dog", "Car"])
    assert [(e.modality, e.label, e.onset, e.offset) for e in found] == [
        ("audio", "Car", 0, 2),
        ("visual", "Dog", 0, 5),
        ("audio", "Car", 4, 5),
    ]
    np.testing.assert_allclose([e.confidence for e in found], [0.15, 0.5, 0.85], rtol=1e-6)
    assert events_in(decided & False, prob, ["Dog", "Car"]) == []
