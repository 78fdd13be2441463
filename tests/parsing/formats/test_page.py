"""The page of a clip, as text and in a real Chromium."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import wave
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from avvp_dist.parsing.folder import TimelineFolder
from avvp_dist.parsing.formats.media import Media
from avvp_dist.parsing.formats.names import single_line
from avvp_dist.parsing.formats.page import render
from avvp_dist.parsing.timeline import Timeline
from tests.parsing.timelines import HOSTILE, SPANS, image, timeline_of, timelines

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


class Elements(HTMLParser):
    """Tags of a page, its visible texts, and the words of its table."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


PLAIN = set(Elements(render(timeline_of(SPANS), None)[".html"]).tags)


@given(timelines())
@settings(max_examples=30, deadline=None)
def test_names_are_text_and_nothing_else(timeline: Timeline) -> None:
    page = Elements(render(timeline, None)[".html"])
    assert set(page.tags) <= PLAIN | {"ul", "li"}
    assert page.tags.count("script") == 1 and page.tags.count("style") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert single_line(timeline.id) in page.texts
    for event in timeline.events:
        assert single_line(event.label.replace("_", " ")) in page.texts
    assert (
        page.tags.count("button")
        == len(timeline.events)
        == page.tags.count("tr") - bool(timeline.events)
    )


def test_the_table_says_what_the_chart_says() -> None:
    page = render(timeline_of([("visual", "Frying_(food)", 2, 5)]), None)[".html"].decode()
    (row,) = re.findall(r"<tbody>\n<tr>(.*)</tr>\n</tbody>", page)
    cells = re.findall(r">([^<>]+)</t", row)
    assert cells == ["Frying (food)", "visual", "2 s", "5 s", "0.88"]


# In a browser.

Open = Callable[..., "Chrome"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(programs.values()):
        pytest.skip("no Chromium here: Debian's packages are chromium and chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(programs["chromium"])
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1100,900"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, Service(programs["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser: Chrome, tmp_path: Path) -> Iterator[Open]:
    """Open the page of a timeline from the disk, and see that nothing is fetched or refused."""
    opened: list[Path] = []

    def show(timeline: Timeline, media: Media | None = None) -> Chrome:
        page = tmp_path / "page #1.html"
        page.write_bytes(render(timeline, media)[".html"])
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get(page.as_uri())
        opened.append(page)
        return browser

    yield show
    assert browser.get_log("browser") == []
    assert {url for url in requests(browser) if not url.startswith("data:")} == {
        page.as_uri() for page in opened
    }


def requests(browser: Chrome) -> Iterator[str]:
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]


def press(browser: Chrome, *keys: str) -> None:
    """Press keys, wherever the focus is."""
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def focused(browser: Chrome) -> tuple[str, str]:
    """Class and modality, and seconds of the event in focus, as a screen reader says them."""
    label = browser.switch_to.active_element.accessible_name
    name, modality, seconds, _ = label.split(", ")
    return f"{name}, {modality}", seconds


def now(browser: Chrome) -> str:
    return browser.find_element("id", "now").text


def events_now(browser: Chrome) -> Sequence[str]:
    found = browser.find_elements("css selector", ".event.current")
    return sorted(event.accessible_name.rpartition(", c")[0] for event in found)


def tone(seconds: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(4000)
        sound.writeframes(bytes(range(100, 150)) * 80 * seconds)
    return file.getvalue()


def test_a_click_sets_the_position(open_page: Open) -> None:
    page = open_page(timeline_of(SPANS))
    assert page.find_elements("css selector", "video, audio") == []
    assert events_now(page) == ["Dog, visual, 0 to 10 s", "Speech, audio, 0 to 4 s"]
    page.find_element("css selector", '[aria-label^="Speech, audio, 6 to 9 s"]').click()
    assert now(page) == "6.0"
    assert events_now(page) == ["Dog, visual, 0 to 10 s", "Speech, audio, 6 to 9 s"]
    assert page.find_element("id", "said").text.endswith("at 6.0 s")
    line = page.find_element("css selector", ".playhead").rect
    lanes = page.find_element("css selector", ".lanes").rect
    assert line["x"] + 1 == pytest.approx(lanes["x"] + 0.6 * lanes["width"], abs=1.5)


def test_keys_move_between_events(open_page: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    page = open_page(timeline_of(SPANS))
    press(page, Keys.TAB)
    assert focused(page) == ("Speech, audio", "0 to 4 s")
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert focused(page) == ("Speech, visual", "1 to 3 s")
    press(page, Keys.ARROW_DOWN)
    assert focused(page) == ("Dog, audio", "2 to 4 s")
    press(page, Keys.END)
    assert focused(page) == ("Frying (food), audio", "9 to 10 s")
    press(page, Keys.ARROW_RIGHT)  # there is none
    assert now(page) == "0.0"
    press(page, Keys.ENTER)
    assert now(page) == "9.0"
    press(page, Keys.HOME, Keys.ARROW_UP)
    assert focused(page) == ("Speech, audio", "0 to 4 s")


def test_events_seek_the_player(open_page: Open) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    media = Media(
        player=tone(10),
        player_type="audio/wav",
        thumbnails=(image((9, 9, 9), "jpeg"),) * 3,
        log_mel=image((9, 9, 9), "png"),
    )
    page = open_page(timeline_of(SPANS), media)
    shown = page.find_elements("css selector", ".strip img")
    assert [one.get_property("naturalWidth") for one in shown] == [16] * 4
    player = page.find_element("css selector", "audio")
    wait = WebDriverWait(page, 10, 0.05)
    wait.until(lambda _: player.get_property("readyState") == 4)
    assert player.get_property("duration") == pytest.approx(10, abs=0.1)
    page.find_element("css selector", '[aria-label^="Dog, audio, 2 to 4 s"]').click()
    wait.until(lambda _: player.get_property("currentTime") == 2)
    press(page, Keys.ARROW_RIGHT, Keys.ENTER)
    wait.until(lambda _: player.get_property("currentTime") == 6)
    page.execute_script("arguments[0].currentTime = 9.5", player)
    wait.until(lambda _: now(page) == "9.5")
    assert "Frying (food), audio, 9 to 10 s" in events_now(page)


@pytest.mark.parametrize("width", [1100, 400])
def test_hostile_names_do_nothing_and_fit(open_page: Open, width: int) -> None:
    names = [name for name in HOSTILE if name]
    spans = [("audio", name, 0, 2) for name in names]
    page = open_page(timeline_of(spans, clip_id=" ".join(names), classes=names))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert len(page.find_elements("css selector", ".event")) == len(names)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_else_may_run_or_be_fetched(browser: Chrome, tmp_path: Path) -> None:
    page, whole = tmp_path / "page.html", render(timeline_of(SPANS), None)[".html"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        image = f'<img src="http://127.0.0.1:{server.getsockname()[1]}/" onerror="a()">'
        injected = f'<script>document.title = "x"</script>{image}</h1>'
        page.write_bytes(whole.replace(b"</h1>", injected.encode(), 1))
        browser.get(page.as_uri())
        with pytest.raises(TimeoutError):
            server.accept()
    assert browser.title == timeline_of(SPANS).id
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert len(complaints) >= 2 and all("Content Security Policy" in one for one in complaints)


def test_the_list_of_clips_leads_to_their_pages(browser: Chrome, tmp_path: Path) -> None:
    folder = TimelineFolder(tmp_path, ["html"])
    for name in HOSTILE[:3]:
        folder.write(timeline_of(SPANS, clip_id=name))
    browser.get(folder.close().as_uri())
    links = browser.find_elements("css selector", "a")
    assert sorted(link.text for link in links) == sorted(HOSTILE[:3])
    name = links[0].text
    links[0].click()
    assert browser.find_element("css selector", "h1").text == name
    assert browser.get_log("browser") == []
