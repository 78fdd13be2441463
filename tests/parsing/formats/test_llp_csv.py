"""LLP's csv, read by the reader of LLP's own files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from hypothesis import given, settings

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.parsing.formats.llp_csv import render
from avvp_dist.parsing.formats.names import single_line
from avvp_dist.parsing.timeline import Timeline
from tests.parsing.timelines import SPANS, timeline_of, timelines


def test_the_reader_of_annotations_finds_the_events(tmp_path: Path) -> None:
    timeline = timeline_of(SPANS)
    files = render(timeline)
    (tmp_path / "AVVP_eval_audio.csv").write_bytes(files[".audio.csv"])
    (tmp_path / "AVVP_eval_visual.csv").write_bytes(files[".visual.csv"])
    for split in ("test", "val"):
        weak = f"filename\tevent_labels\n{timeline.id if split == 'test' else 'x'}\tDog\n"
        (tmp_path / f"AVVP_{split}_pd.csv").write_text(weak)
    found = read_annotations(tmp_path, "test", classes=timeline.classes)
    assert found.events is not None and not any(found.faults.values())
    assert np.array_equal(found.events[0], timeline.probabilities > 0.5)


@given(timelines())
@settings(max_examples=30, deadline=None)
def test_names_stay_in_their_columns(timeline: Timeline) -> None:
    for modality in MODALITIES:
        lines = render(timeline)[f".{modality}.csv"].decode().split("\n")[:-1]
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert rows[0] == ["filename", "onset", "offset", "event_labels"]
        clip = single_line(timeline.id)
        assert rows[1:] == [
            [clip, str(event.onset), str(event.offset), single_line(event.label)]
            for event in timeline.events
            if event.modality == modality
        ]
