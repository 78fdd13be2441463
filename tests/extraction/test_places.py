"""Places of media: bounds hold before anything is fetched, and what is not there is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.errors import StorageError
from avvp_dist.extraction.places import Place
from avvp_dist.features.media import Bounds, MediaError, Reason
from tests.shards.origins import ALWAYS, Origin

SMALL = Bounds(max_bytes=3)


def failed(place: Place, bounds: Bounds) -> Reason:
    with pytest.raises(MediaError, match="clip") as caught:
        place.open("clip", bounds)
    return caught.value.reason


def test_a_part_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    assert Place(str(path)).open("clip", Bounds()) == path
    assert Place(str(path), 2, 3).open("clip", SMALL) == b"234"
    assert failed(Place(str(path), 2, 4), SMALL) is Reason.TOO_LARGE
    assert failed(Place(str(path), 8, 3), SMALL) is Reason.UNREADABLE  # it was cut since
    assert failed(Place(str(tmp_path / "b.tar"), 0, 3), SMALL) is Reason.MISSING


@pytest.mark.usefixtures("quick")
def test_a_file_at_a_url_is_fetched(http_origin: Origin) -> None:
    http_origin.put("a.mp4", b"0123456789")
    url = f"{http_origin.root}/a.mp4"
    assert Place(url).open("clip", Bounds()) == b"0123456789"
    assert Place(url, 2, 3).open("clip", SMALL) == b"234"
    asked = len(http_origin.server.asked)
    assert failed(Place(url), SMALL) is Reason.TOO_LARGE
    assert failed(Place(url, 0, 10), SMALL) is Reason.TOO_LARGE
    assert len(http_origin.server.asked) == asked  # nothing was fetched
    assert failed(Place(f"{http_origin.root}/b.mp4"), SMALL) is Reason.MISSING


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("status", "is_the_files"), [("403", True), ("429", False), ("500", False)]
)
def test_a_server_that_refuses_a_file_is_not_one_that_fails(
    status: str, is_the_files: bool, http_origin: Origin
) -> None:
    http_origin.put("a.mp4", b"0123456789")
    http_origin.server.fail(status, "a.mp4", ALWAYS)
    place = Place(f"{http_origin.root}/a.mp4", 0, 10)
    if is_the_files:
        assert failed(place, Bounds()) is Reason.MISSING
    else:
        with pytest.raises(StorageError, match=r"a\.mp4 could not be read"):
            place.open("clip", Bounds())
