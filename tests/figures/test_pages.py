"""The pages that everest writes, in a real browser: they work, log no error and request nothing else."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import run

selenium = pytest.importorskip("selenium", reason="no selenium to drive a browser with")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1200,1600"),
    *("--hide-scrollbars", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    if CHROMIUM is None or DRIVER is None:
        missing = "no chromium with its driver to open a page in"
        pytest.fail(missing) if os.environ.get("EVEREST_BROWSER") == "required" else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def quiet_browser(browser: WebDriver) -> Iterator[WebDriver]:
    """The browser; the test fails if a page logs an error or requests more than itself."""
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what came before
    yield browser
    assert browser.get_log("browser") == []
    events = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = [r["request"]["url"] for r in requests if r["documentURL"].startswith("file:")]
    assert browser.current_url in urls
    assert all(url == browser.current_url or url.startswith("data:") for url in urls)


@pytest.fixture(scope="module")
def written(
    heads_run: Path,
    tags_run: Path,
    scores_run: Path,
    mixed_run: Path,
    clip_files: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Every kind of page that a command writes."""
    folder = tmp_path_factory.mktemp("written")
    runs = {"report": heads_run, "tags": tags_run, "scores": scores_run, "mixed": mixed_run}
    for name, classifier in runs.items():
        run("eval", "-c", classifier, "-q", "--report", folder / name)
    features = ["--features", folder / "features.safetensors"]
    run(
        "extract", clip_files, "-c", heads_run, "--window", "0.5", "-o", folder / "features.safetensors", "-q"
    )
    run("search", clip_files / "clip0.mp4@1", *features, "--page", folder / "search.html")
    pages = {name: folder / name / "index.html" for name in runs}
    return {**pages, "search": folder / "search.html"}


def test_an_evaluation_report_shows_all_figures(quiet_browser: WebDriver, written: dict[str, Path]):
    quiet_browser.get(written["report"].as_uri())
    pictures = quiet_browser.find_elements(By.TAG_NAME, "img")
    mistakes = quiet_browser.find_elements(By.CLASS_NAME, "mistake")
    assert len(pictures) == 2 + len(mistakes)  # confusions of each head
    assert all(int(shown.get_property("naturalWidth")) > 50 for shown in pictures)
    headings = [part.text for part in quiet_browser.find_elements(By.TAG_NAME, "h2")]
    assert headings == ["verb", "noun"]


def test_the_clips_of_a_search_play(quiet_browser: WebDriver, written: dict[str, Path]):
    quiet_browser.get(written["search"].as_uri())
    clips = quiet_browser.find_elements(By.TAG_NAME, "video")
    assert len(clips) == 11  # the query and ten neighbors
    played = (
        "return [...document.querySelectorAll('video')].every(v => v.currentTime > 0 && v.videoWidth > 0)"
    )
    WebDriverWait(quiet_browser, 20).until(lambda b: b.execute_script(played))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("pages", ["report", "tags", "scores", "mixed", "search"])
def test_a_page_fits_its_window_and_the_color_scheme(quiet_browser, written, pages, width, scheme):
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    quiet_browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    quiet_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    quiet_browser.get(written[pages].as_uri())
    assert quiet_browser.execute_script("return document.documentElement.scrollWidth") == width
    # Wider than the window only where a frame scrolls, and in a narrow window.
    cut = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert quiet_browser.execute_script(cut) == 0 or width == 500

    def brightness(name: str) -> int:
        color = quiet_browser.execute_script(f"return getComputedStyle(document.body).{name}")
        return sum(map(int, re.findall(r"\d+", color)))

    brighter = brightness("backgroundColor") - brightness("color")
    assert (brighter > 0) == (scheme == "light")
    assert abs(brighter) > 500
