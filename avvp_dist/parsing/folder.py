"""A folder of parsed clips: their files, a page that lists them, and a manifest of it all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from avvp_dist.commit import MANIFEST, json_text, sha256, staged
from avvp_dist.errors import ConfigError
from avvp_dist.json_values import parse_value
from avvp_dist.parsing.formats import index_page
from avvp_dist.parsing.formats.index_page import ParsedClip
from avvp_dist.parsing.formats.media import Media
from avvp_dist.parsing.formats.names import file_stem
from avvp_dist.parsing.formats.table import FORMATS
from avvp_dist.parsing.timeline import Timeline
from avvp_dist.shards.manifest import FileEntry

FORMAT = "avvp-timelines-1"
INDEX = "index.html"


@dataclass(frozen=True)
class _Manifest:
    """The clips of a folder by id, and its files by name."""

    clips: Mapping[str, ParsedClip]
    files: Mapping[str, FileEntry]


class TimelineFolder:
    """A folder that timelines are written into; clips that were parsed before stay in it.

    A file is written only if it changes. When a clip is parsed anew with another result, its files
    of other formats are removed, because they show the old one.

    Args:
        formats: names of `FORMATS` to write.

    Attributes:
        changed: number of files that were written or removed.

    Raises:
        ConfigError: if the folder holds something else, or no format is given.
    """

    def __init__(self, folder: Path, formats: Sequence[str]) -> None:
        self.folder, self.formats, self.changed = folder, tuple(dict.fromkeys(formats)), 0
        if not self.formats:
            raise ConfigError("formats: none is given", remedy=f"Choose from {', '.join(FORMATS)}")
        manifest = _read_manifest(folder)
        self._clips = dict(manifest.clips)
        self._files = {
            name: entry
            for name, entry in manifest.files.items()
            if "/" not in name and (folder / name).is_file()
        }

    def write(self, timeline: Timeline, media: Media | None = None) -> None:
        """Write the files of a clip."""
        stem = file_stem(timeline.id)
        made = {
            f"{stem}{suffix}": content
            for name in self.formats
            for suffix, content in FORMATS[name](timeline, media).items()
        }
        result = timeline.result_digest()
        before = self._clips.get(timeline.id)
        others = [name for name in before.files if name not in made] if before else []
        if before and before.result != result:
            self._remove(others)
        kept = [name for name in others if name in self._files]
        for name, content in made.items():
            self._write(name, content)
        self._clips[timeline.id] = ParsedClip(
            seconds=timeline.seconds,
            heard=_labels(timeline, "audio"),
            seen=_labels(timeline, "visual"),
            note=" ".join(timeline.notes()),
            result=result,
            files=tuple(sorted((*kept, *made))),
        )

    def close(self) -> Path:
        """Write the list of clips and the manifest.

        Returns:
            The page to open, or the folder if there is no page.
        """
        pages = [name for name in self._files if name.endswith(".html") and name != INDEX]
        if len(pages) > 1:
            self._write(INDEX, index_page.render(dict(sorted(self._clips.items()))))
        else:
            self._remove([INDEX])
        manifest = _Manifest(dict(sorted(self._clips.items())), dict(sorted(self._files.items())))
        text = json_text({"format": FORMAT, **asdict(manifest)}).encode()
        self._write_changed(MANIFEST, text)
        return self.folder / (INDEX if len(pages) > 1 else pages[0] if pages else "")

    def _write(self, name: str, content: bytes) -> None:
        self._files[name] = FileEntry(len(content), sha256(content))
        self._write_changed(name, content)

    def _write_changed(self, name: str, content: bytes) -> None:
        path = self.folder / name
        if path.is_file() and path.read_bytes() == content:
            return
        with staged(path) as temporary:
            temporary.write_bytes(content)
        self.changed += 1

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            if self._files.pop(name, None):
                (self.folder / name).unlink()
                self.changed += 1


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    if not path.exists():
        return _Manifest({}, {})
    try:
        entries = json.loads(path.read_bytes())
        if isinstance(entries, dict) and entries.pop("format", None) == FORMAT:
            return parse_value(_Manifest, entries)
    except (ValueError, RecursionError):
        pass  # it is no manifest of ours, which is said below
    raise ConfigError(
        f"out: {folder} holds something else than timelines, says its {MANIFEST}",
        remedy="Choose another folder",
    )


def _labels(timeline: Timeline, modality: str) -> tuple[str, ...]:
    """Classes with an event of a modality, by their first onset."""
    labels = (event.label for event in timeline.events if event.modality == modality)
    return tuple(dict.fromkeys(labels))
