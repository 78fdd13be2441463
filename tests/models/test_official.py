"""Official state dicts: imported, they give what the official codes give."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avvp_dist.errors import CheckpointError
from avvp_dist.models.export import load_parser
from avvp_dist.models.official import import_checkpoint

TAGS = (
    "han",
    "adv_skip",
    "adv_skip_gcaa_corrected",
    "adv_gcaa_corrected",
    "adv_skip_gcaa_released",
    "adv_gcaa_released",
)


def official_state(shared: Path, tag: str) -> dict[str, Tensor]:
    """The official tensors, dead modules included, as the oracles' README says."""
    shapes = json.loads((shared / "oracles" / "parsers_state_dicts.json").read_text())[tag]
    state = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        w = (rng.standard_normal(shape) * 0.05).astype(np.float32)
        if "running_var" in name:
            w = 1 + abs(w)
        elif len(shape) == 1 and name.endswith(".weight"):
            w = 1 + w
        state[name] = torch.tensor(w)
    return state


def imported(state: dict[str, Tensor], tag: str, folder: Path) -> Path:
    torch.save(state, folder / "official.pt")
    format = "han" if tag == "han" else "cross_modal"
    import_checkpoint(
        folder / "official.pt",
        format,
        folder / "model",
        skip="skip" in tag,
        gcaa_first_snippet="released" in tag,
    )
    return folder / "model"


def oracle_input() -> dict[str, Tensor]:
    rng = np.random.default_rng(7)
    audio = abs(rng.standard_normal((2, 10, 128)))
    frames = abs(rng.standard_normal((2, 80, 2048)))
    motion = rng.standard_normal((2, 10, 512))
    streams = {"audio": audio, "visual": frames.reshape(2, 10, 8, -1).mean(2), "motion": motion}
    return {name: torch.tensor(x, dtype=torch.float32) for name, x in streams.items()}


@pytest.mark.shared
@pytest.mark.parametrize("tag", TAGS)
@torch.no_grad()
def test_imported_parsers_are_the_official_ones(
    shared: Path, tag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = official_state(shared, tag)
    parser, _ = load_parser(imported(state, tag, tmp_path))
    printed = capsys.readouterr().out
    assert all(name in printed for name in state)
    parsed = parser.eval()(oracle_input())
    ours = {
        "video_prob": parsed.video_prob,
        "audio_prob": parsed.modality_prob[:, 0],
        "visual_prob": parsed.modality_prob[:, 1],
        "frame_prob": parsed.frame_prob,
    }
    if parser.config.discriminator:
        rows = abs(np.random.default_rng(8).standard_normal((6, 512)))
        rows = torch.tensor(rows, dtype=torch.float32)
        ours["discriminator"] = parser.discriminator(rows).sigmoid()
    expected = np.load(shared / "oracles" / "parsers.npz")
    assert {f"{tag}/{name}" for name in ours} == {n for n in expected if n.startswith(f"{tag}/")}
    for name, value in ours.items():
        np.testing.assert_allclose(value, expected[f"{tag}/{name}"], atol=1e-5, err_msg=name)


def spoil(state: dict[str, Any], fault: str) -> None:
    if fault == "missing":
        del state["fc_a.weight"]
    elif fault == "unexpected":
        state["fc_other.weight"] = torch.zeros(2)
    elif fault == "reshaped":
        state["fc_prob.bias"] = torch.zeros(24)
    else:
        state["epoch"] = 3


@pytest.mark.shared
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"missing \['embed.audio.weight'\]"),
        ("unexpected", r"unexpected \['fc_other.weight'\]"),
        ("reshaped", r"prob.bias \[24\] for \[25\]"),
        ("no tensor", "names to tensors"),
    ],
)
def test_anything_unexpected_is_an_error(
    shared: Path, tmp_path: Path, fault: str, message: str
) -> None:
    state = official_state(shared, "han")
    spoil(state, fault)
    with pytest.raises(CheckpointError, match=message):
        imported(state, "han", tmp_path)
    assert not (tmp_path / "model").exists()


class Code:
    """A pickle that would run a function when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("run",)


@pytest.mark.parametrize("content", [b"text", None])
def test_a_file_that_is_no_state_dict_is_refused(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evil.pt"
    if content is None:
        torch.save({"fc_a.weight": Code()}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        import_checkpoint(file, "han", tmp_path / "model")
    assert "run" not in capsys.readouterr().out
