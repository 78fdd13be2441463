"""Arms of the label study: what stands in front of a parser, and on what it was trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avvp_dist.config import OBJECTIVES, TERMS, LabelsStudyConfig
from avvp_dist.errors import ConfigError
from avvp_dist.loading.heldout import training_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.reproduction.recipes import UNTRAINED
from avvp_dist.shards.shard_set import ShardSet

PLAIN = "no encoder"
"""Name of the arm without an encoder."""
RANDOM = "random"
"""Objective of encoders that keep their random weights."""


@dataclass(frozen=True)
class Corpus:
    """Clips that encoders are trained on."""

    name: str
    """Text in the key `corpora`."""
    places: tuple[str, ...]
    """Folders or URLs of its shard sets."""
    clips: tuple[int, ...]
    """Number of clips of each set that are trained on."""

    @property
    def keys(self) -> list[str]:
        """KEY=VALUE of its pretraining."""
        return [f"data.shards=[{','.join(self.places)}]", f"data.clips={list(self.clips)}"]


@dataclass(frozen=True)
class Encoder:
    """Encoders of the study: one for each seed."""

    objective: str
    """Text in the key `objectives`, or `RANDOM`."""
    corpus: Corpus

    @property
    def name(self) -> str:
        """Name in tables."""
        return RANDOM if self.is_random else f"{self.objective}, {self.corpus.name}"

    @property
    def is_random(self) -> bool:
        """Whether its weights are left as they are drawn."""
        return self.objective == RANDOM

    @property
    def keys(self) -> list[str]:
        """KEY=VALUE of its pretraining, for objective and corpus."""
        objective = UNTRAINED if self.is_random else objective_keys(self.objective)
        return [*self.corpus.keys, *objective]


@dataclass(frozen=True)
class Arm:
    """A row of the study for each number of labels."""

    encoder: Encoder | None = None
    tuned: bool = False
    """Whether the encoder is trained with the parser."""

    @property
    def name(self) -> str:
        """Name in tables."""
        if self.encoder is None:
            return PLAIN
        return f"{self.encoder.name}, {'tuned' if self.tuned else 'frozen'}"

    @property
    def is_control(self) -> bool:
        """Whether nothing was pretrained for it."""
        return self.encoder is None or self.encoder.is_random

    @property
    def keys(self) -> list[str]:
        """KEY=VALUE of its parsers besides the encoder's folder."""
        return [f"pretrained.tune={str(self.tuned).lower()}"]


def study_arms(config: LabelsStudyConfig, corpora: Sequence[Corpus]) -> list[Arm]:
    """The controls without pretraining, then each objective on each corpus.

    Raises:
        ConfigError: for an objective that is none.
    """
    for objective in config.objectives:
        objective_keys(objective)
    encoders = [Encoder(RANDOM, corpora[0])]
    encoders += [Encoder(name, corpus) for name in config.objectives for corpus in corpora]
    uses = [use == "tuned" for use in dict.fromkeys(config.encoders)]
    return [Arm(), *(Arm(encoder, tuned) for encoder in encoders for tuned in uses)]


def objective_keys(text: str) -> list[str]:
    """KEY=VALUE of a sum of objectives such as `multi+0.5*masked`.

    Raises:
        ConfigError: if a part is no objective, or there are two grounding losses.
    """
    keys = dict.fromkeys(TERMS, 0.0)
    names = []
    for name, weight in _sum("objectives", text):
        if name in OBJECTIVES:
            names.append(name)
            name = "grounding"
        elif name not in TERMS[1:]:
            known = ", ".join((*OBJECTIVES, *TERMS[1:]))
            raise ConfigError(f"objectives: '{text}' has the part {name}", remedy=f"Take {known}")
        keys[name] += weight
    if len(names) > 1:
        raise ConfigError(
            f"objectives: '{text}' has two grounding losses", remedy="multi is uni and cross"
        )
    named = [f"objective.name={name}" for name in names]
    return [*named, *(f"objective.{name}={weight:g}" for name, weight in keys.items())]


def open_corpus(text: str, shards: Path, heldout: float) -> Corpus:
    """Open the shard sets of a corpus such as `0.5*train+wide` and count their clips.

    Args:
        shards: folder of the sets that are given by name.
        heldout: fraction of the clips that pretraining holds out.

    Raises:
        ConfigError: for a fraction above 1, or one that leaves no clip.
        DataError: if a set cannot be read.
    """
    places, clips = [], []
    for name, fraction in _sum("corpora", text):
        part = ShardSet(name if "/" in name else str(shards / name))
        data = Mixture([part])
        usable = int((training_clips(data, heldout) & ~data.excluded).sum())
        count = int(np.floor(fraction * usable))
        if fraction > 1 or not count:
            raise ConfigError(
                f"corpora: '{text}' takes {fraction:g} of the {usable:,} clips of {part.name}",
                remedy="Take a fraction up to 1 that leaves some",
            )
        places.append(part.name)
        clips.append(count)
    return Corpus(text, tuple(places), tuple(clips))


def _sum(key: str, text: str) -> list[tuple[str, float]]:
    """Names and factors of a sum such as `a+0.5*b`."""
    terms = []
    for part in text.split("+"):
        found = re.fullmatch(r"(?:(\d*\.?\d+(?:e-?\d+)?)\*)?([^*\s]+)", part.strip())
        if not found or float(found[1] or 1) <= 0:
            raise ConfigError(
                f"{key}: '{text}' is no sum of names", remedy="Write NAME, NAME+NAME or 0.5*NAME"
            )
        terms.append((found[2], float(found[1] or 1)))
    return terms
