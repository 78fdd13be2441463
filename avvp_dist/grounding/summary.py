"""The JSON files of a grounding: a ledger record per shard, and the summary of all shards.

Each task counts its shard and the job adds up the counts, so it never holds the labels of all
clips. The summary `grounding.json` is written last: a grounding without it is not finished.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from avvp_dist.errors import DataError
from avvp_dist.grounding.plan import Plan
from avvp_dist.grounding.profile import ComponentProfile
from avvp_dist.shards.remote import is_url, read_url
from avvp_dist.shards.shard_set import ShardSet

GROUNDINGS = "grounding"
"""Folder of a shard set's groundings, one subfolder per version."""
SUMMARY = "grounding.json"

_JOINED = "joined"
_PER_CLIP = ("short", "unreadable")
"""Anomalies that are counted per clip; the others are counted per snippet."""
_REMEDY = "Run `avvp ground` again"


@dataclass(frozen=True)
class ShardRecord:
    """Ledger record of a shard whose labels are written."""

    sha256: str
    """Hash of the file of labels."""
    counts: dict[str, int]
    faults: list[str]
    """Errors of the first clips that cannot be read."""
    profile: ComponentProfile

    @property
    def unreadable(self) -> int:
        """Number of clips that cannot be read and have no labels."""
        return self.counts["unreadable"]

    def plain(self) -> dict[str, object]:
        """JSON form, which `parse` reads."""
        return {
            "sha256": self.sha256,
            **dict(sorted(self.counts.items())),
            "faults": self.faults,
            "profile": self.profile.plain(),
        }

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> ShardRecord | None:
        """Record from its JSON form; None if it is damaged."""
        try:
            counts = {key: value for key, value in plain.items() if isinstance(value, int)}
            profile = ComponentProfile.parse(plain["profile"])
            record = cls(plain["sha256"], counts, list(plain["faults"]), profile)
        except (KeyError, TypeError, ValueError):
            return None
        return record if isinstance(record.sha256, str) and "unreadable" in counts else None


@dataclass(frozen=True)
class LabelFile:
    """Entry of the summary for the labels of one shard."""

    name: str
    clips: int
    sha256: str


@dataclass(frozen=True)
class GroundingSummary:
    """Content of `grounding.json`."""

    version: str
    manifest: str
    """`content` digest of the shard set."""
    files: list[LabelFile]
    """Labels of each shard, in the order of the shard set."""
    plan: Plan | None = None
    """None if another program made the labels, and so is `profile`."""
    profile: ComponentProfile | None = None
    counts: dict[str, int] = field(default_factory=dict)
    """Number of clips and snippets, of joined pairs by stream, and of anomalies."""

    @classmethod
    def of(cls, plan: Plan, shards: ShardSet, records: Sequence[ShardRecord]) -> GroundingSummary:
        """Sum of the records of all shards, which are in the order of the shard set."""
        counts: Counter[str] = Counter()
        for record in records:
            counts.update(record.counts)
        return cls(
            version=plan.version,
            manifest=shards.content,
            files=[
                LabelFile(f"{shard.stem}.npy", shard.clips, record.sha256)
                for shard, record in zip(shards.shards, records, strict=True)
            ],
            plan=plan,
            profile=reduce(add, (record.profile for record in records)),
            counts=dict(sorted(counts.items())),
        )

    @classmethod
    def read(cls, place: str | Path) -> GroundingSummary:
        """Read and check the summary of the grounding in a folder or at a URL.

        Raises:
            DataError: naming the file, if it is missing, damaged or of another version.
        """
        path = f"{place}/{SUMMARY}"
        try:
            plain = json.loads(read_bytes(path))
        except FileNotFoundError:
            raise DataError(
                f"{path} is missing: no finished grounding",
                remedy="Run `avvp ground` (again: it goes on where it stopped)",
            ) from None
        except ValueError:
            raise DataError(f"{path} is not JSON", remedy=_REMEDY) from None
        try:
            plan, profile = plain.get("plan"), plain.get("profile")
            return cls(
                version=plain["version"],
                manifest=plain["manifest"],
                files=[LabelFile(**entry) for entry in plain["shards"]],
                plan=None if plan is None else Plan.parse(plan),
                profile=None if profile is None else ComponentProfile.parse(profile),
                counts=dict(plain.get("counts", {})),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is damaged, or another version of avvp_dist made it: {error!r}",
                remedy=_REMEDY,
            ) from None

    def plain(self) -> dict[str, object]:
        """JSON form, which `read` reads; figures stand in it for those who read the file."""
        return {
            "version": self.version,
            "manifest": self.manifest,
            "plan": None if self.plan is None else self.plan.plain(),
            **self.figures,
            "counts": self.counts,
            "profile": None if self.profile is None else self.profile.plain(),
            "shards": [asdict(file) for file in self.files],
        }

    @property
    def figures(self) -> dict[str, float]:
        """Figures of the profile, and the fraction of pairs that each stream and the rule join."""
        if self.profile is None:
            return {}
        pairs = max(self.profile.pairs, 1)
        joined = {f"{key}_pair_share": self.counts[key] / pairs for key in self._joined()}
        return {**self.profile.figures, **joined}

    def fractions(self) -> dict[str, float]:
        """Fractions to show: positive pairs, joined pairs, and clips or snippets per anomaly."""
        figures = self.figures
        shown = {"positive pairs": figures["positive_pair_share"]}
        for key in self._joined():
            _, _, stream = key.partition("/")
            shown[f"pairs joined by {stream or 'the rule'}"] = figures[f"{key}_pair_share"]
        snippets = max(self.counts.get("snippets", 0), 1)
        clips = max(self.counts.get("clips", 0), 1) + self.counts.get("unreadable", 0)
        for key, count in self._anomalies():
            per_clip = key in _PER_CLIP
            name = f"{key.replace('/', ' ')} {'clips' if per_clip else 'snippets'}"
            shown[name] = count / (clips if per_clip else snippets)
        return shown

    def described(self) -> str:
        """The figures in a line of text, and a second line if there are anomalies."""
        assert self.profile is not None
        figures = self.figures
        links = ", ".join(f"{key} {figures[f'{key}_pair_share']:.1%}" for key in self._joined())
        anomalies = ", ".join(f"{count:,} {key}" for key, count in self._anomalies() if count)
        return f"{self.profile.described()} ({links})" + (f"\n{anomalies}" if anomalies else "")

    def _joined(self) -> list[str]:
        return sorted(key for key in self.counts if key.startswith(_JOINED))

    def _anomalies(self) -> Iterator[tuple[str, int]]:
        """Counters of what is not as it should be."""
        for key, count in self.counts.items():
            if key not in ("clips", "snippets") and not key.startswith(_JOINED):
                yield key, count


def read_bytes(file: str) -> bytes:
    """Content of a local file or a URL.

    Raises:
        FileNotFoundError: if there is none.
    """
    return read_url(file) if is_url(file) else Path(file).read_bytes()
