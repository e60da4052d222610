"""The pages that everest writes, in a real browser: they work, log no error and request nothing else."""

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from small_runs import json_of, run

selenium = pytest.importorskip("selenium", reason="no selenium to drive a browser with")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402

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
def written(heads_run, tags_run, scores_run, mixed_run, clip_files, tmp_path_factory) -> dict[str, Path]:
    """Every kind of page that a command writes."""
    folder = tmp_path_factory.mktemp("written")
    runs = {"report": heads_run, "tags": tags_run, "scores": scores_run, "mixed": mixed_run}
    for name, classifier in runs.items():
        run("eval", "-c", classifier, "-q", "--report", folder / name)
    timeline = folder / "timeline.safetensors"
    run("timeline", clip_files, "-c", tags_run, "--window", "0.5", "--save", timeline, "-q")
    run("budget", "--timeline", timeline, "--draw", "4", "--window", "0.5", "-o", folder / "checked.csv")
    pages = {name: folder / name / "index.html" for name in runs}
    return {**pages, "windows": folder / "checked.html"}


def test_an_evaluation_report_shows_all_figures(quiet_browser: WebDriver, written: dict[str, Path]):
    quiet_browser.get(written["report"].as_uri())
    pictures = quiet_browser.find_elements(By.TAG_NAME, "img")
    mistakes = quiet_browser.find_elements(By.CLASS_NAME, "mistake")
    assert len(pictures) == 2 + len(mistakes)  # confusions of each head
    assert all(int(shown.get_property("naturalWidth")) > 50 for shown in pictures)
    headings = [part.text for part in quiet_browser.find_elements(By.TAG_NAME, "h2")]
    assert headings == ["verb", "noun"]


def saved_rows(browser: WebDriver) -> list[list[str]]:
    """The rows of the list that a click on `Save the list` writes."""
    kind, text = str(browser.find_element(By.ID, "save").get_attribute("href")).split(",", 1)
    assert kind == "data:text/csv;charset=utf-8"
    return [*csv.reader(unquote(text).splitlines())]


def test_the_clicks_on_a_page_of_windows_become_rows_that_a_budget_reads(quiet_browser, written, tmp_path):
    page = written["windows"]
    quiet_browser.get(page.as_uri())
    header, *sampled = csv.reader(page.with_suffix(".csv").read_text().splitlines())
    assert saved_rows(quiet_browser) == [header, *sampled]
    parts = quiet_browser.find_elements(By.CLASS_NAME, "class")
    labels = [str(part.get_attribute("data-label")) for part in parts]
    first, second = labels[:2]

    def click(window: int, label: str, button: str, at: float = 0.0) -> None:
        article = quiet_browser.find_elements(By.TAG_NAME, "article")[window]
        seek = (
            "const v = arguments[0].querySelector('video'); v.pause(); v.currentTime = arguments[1] + lead;"
        )
        seek = f"const lead = Number(arguments[0].dataset.lead); {seek}"
        quiet_browser.execute_script(seek, article, at)
        article.find_element(By.CSS_SELECTOR, f"[data-label='{label}'] [data-click='{button}']").click()

    def row(window: int, start: float, end: float, label: str) -> list[str]:
        video, begin, *_ = sampled[window]
        return [video, f"{float(begin) + start:.3f}", f"{float(begin) + end:.3f}", label]

    click(3, first, "end", 14 / 30)  # the last frame, twice
    video = quiet_browser.find_elements(By.TAG_NAME, "video")[3]
    lead = float(str(quiet_browser.find_elements(By.TAG_NAME, "article")[3].get_attribute("data-lead")))
    assert lead == 0.5 or float(sampled[3][1]) == 0  # half a second before the window is shown, too
    space = "const v = arguments[0]; return v.clientHeight - v.clientWidth * v.videoHeight / v.videoWidth;"
    assert quiet_browser.execute_script(space, video) > 70  # of the controls, below the picture
    seek = "arguments[0].currentTime = arguments[1]; arguments[0].onended = arguments[2];"
    quiet_browser.execute_async_script(seek, video, lead + 14 / 30)
    start = quiet_browser.find_elements(By.CSS_SELECTOR, f"[data-label='{second}'] [data-click='start']")[3]
    start.click()
    assert [cells[1:] for cells in saved_rows(quiet_browser)[-2:]] == [
        row(3, 0, 14 / 30, first)[1:], row(3, 14 / 30, 0.5, second)[1:],
    ]  # fmt: skip
    for _ in range(2):
        quiet_browser.find_elements(By.CSS_SELECTOR, ".bouts button")[-1].click()
    for box in quiet_browser.find_elements(By.CSS_SELECTOR, "input"):
        box.click()
    assert quiet_browser.find_element(By.ID, "progress").text == "4 of 4 windows checked"
    click(0, first, "start", 0.1)
    click(0, first, "end", 0.3)
    click(0, second, "all")
    click(1, first, "end", 0.2)  # under way at the start
    click(1, second, "start", -0.2)  # before the window: under way
    click(2, second, "start", 0.25)  # goes on at the end
    click(3, second, "all")
    quiet_browser.find_elements(By.CSS_SELECTOR, ".bouts button")[-1].click()  # removed again
    quiet_browser.get(page.as_uri())  # closed and opened again
    marks = [[*cells[:3], "checked"] for cells in sampled]
    bouts = (
        [row(0, 0.1, 0.3, first), row(0, 0, 0.5, second)],
        [row(1, 0, 0.2, first), row(1, 0, 0.5, second)],
        [row(2, 0.25, 0.5, second)],
        [],
    )
    expected = [each for mark, of_window in zip(marks, bouts, strict=True) for each in (mark, *of_window)]
    assert saved_rows(quiet_browser) == [header, *expected]
    filled = tmp_path / "checked.csv"
    filled.write_text("".join(f"{','.join(cells)}\n" for cells in saved_rows(quiet_browser)))
    document = json_of("budget", "--timeline", page.with_name("timeline.safetensors"), "--checked", filled)
    seconds = {row["class"]: row["checked"] for row in document["rows"] if row["class"] in labels}
    assert seconds == pytest.approx({**dict.fromkeys(labels, 0), first: 0.4, second: 1.25})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("pages", ["report", "tags", "scores", "mixed", "windows"])
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
