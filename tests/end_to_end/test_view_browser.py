"""The pages of a run in a real browser: clicked and keyed as a person would, and read by axe."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from potstill.reporting.page import page as frozen_page
from potstill.runs.survey import survey
from potstill.runs.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_transformers_serve import make_model
from view_run import REPORT, Maker, make_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no chromium on this machine")]
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
SECTIONS = {
    "run": "/", "stage": "/stage/chats", "family": "/stage/dpo", "model": "/stage/dpo%5Bseed=0%5D",
    "evaluation": "/stage/scores", "waiting": "/stage/waiting", "rows": "/rows/rated",
    "left out": "/rows/chats?file=dropped.jsonl",
    "row": "/row/3/rated", "pair": "/row/3/pairs", "chat": "/row/3/chats", "scores": "/scores", "compare": "/compare",
    "audits": "/audits", "error": "/stage/nothing", "arena": "/arena", "standings": "/arena/standings",
}  # fmt: skip
SECONDS = 60_000
"""Milliseconds that a busy machine may take over a page."""


@contextmanager
def viewing(folder: Path) -> Iterator[str]:
    """`potstill view` as a person starts it, and ended as a person ends it."""
    words = [sys.executable, "-m", "potstill.cli", "view", str(folder), "--no-browser"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
    assert found, server.stderr.read()
    try:
        yield found[0]
    finally:
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=60)
    assert server.returncode == 0
    assert said == ""


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with viewing(make_run(tmp_path_factory.mktemp("run")).path) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield made
        made.close()


@pytest.fixture
def open_page(browser, address):
    """Opens an address; at the end nothing may have been asked elsewhere, and nothing complained."""
    contexts, asked, complaints, servers = [], [], [], [address]

    def start(path="/", **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
        if path.startswith("http://"):
            servers.append(path[: path.index("/", len("http://"))])
        page.goto(path if "://" in path else address + path)
        return page

    yield start
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith((*(f"{one}/" for one in servers), "file://", "data:,"))] == []
    assert [one for one in complaints if "404 (Not Found)" not in one] == []


def test_from_the_run_to_a_row_by_clicks(open_page):
    page = open_page()
    page.locator("svg.graph a", has_text="rated").first.click()
    page.wait_for_url("**/stage/rated")
    page.get_by_role("link", name="All 60 rows").click()
    page.get_by_role("link", name="next →").click()
    page.wait_for_url("**start=20**")
    page.locator("#rows a").first.click()
    assert "wise 20" in page.inner_text("main")
    page.go_back()
    page.go_back()
    assert page.locator("#rows li").count() == 20
    page.get_by_placeholder("Search the texts").fill("zebrafinch")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**q=zebrafinch**")
    assert page.locator("#rows li").count() == 1


def test_a_filter_searches_when_it_is_chosen_and_its_address_can_be_shared(open_page):
    page = open_page("/rows/rated")
    page.locator("select[name=category]").select_option("math")
    page.wait_for_url("**category=math**")
    shown = page.locator("#rows li").all_inner_texts()
    assert len(shown) == 15
    assert open_page(page.url).locator("#rows li").all_inner_texts() == shown


def test_two_models_are_compared(open_page):
    page = open_page("/compare")
    page.locator("select[name=a]").select_option("base")
    page.wait_for_url("**a=base**")
    page.locator("select[name=b]").select_option("dpo")
    page.wait_for_url("**b=dpo**")
    assert page.locator(".question .apart").first.inner_text().startswith("−")
    page.locator(".question summary").nth(2).click()
    text = page.locator(".question").nth(2).inner_text()
    assert "base says" in text
    assert "dpo says" in text
    assert "judged" in text


def test_by_keys_alone(open_page):
    page = open_page("/rows/rated")
    page.keyboard.press("?")
    assert page.locator("dialog#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog#keys").is_visible()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.type("wise j")  # letters, not keys
    page.keyboard.press("Escape")
    for key in ("j", "j", "ArrowDown", "k"):
        page.keyboard.press(key)
    assert "rated-1" in page.evaluate("document.activeElement.innerText")
    page.keyboard.press("Enter")
    page.wait_for_url("**/row/1/**")
    page.keyboard.press("j")
    page.wait_for_url("**/row/2/**")
    page.keyboard.press("u")
    page.wait_for_url("**/rows/rated**")
    page.keyboard.press("n")
    page.wait_for_url("**start=20**")
    page.keyboard.press("g")
    page.wait_for_url(re.compile(r":\d+/$"))


def test_everything_is_reached_by_tab_with_a_visible_focus(open_page):
    page = open_page("/rows/rated")
    wanted = page.locator("a[href], button, input:not([type=hidden]), select").locator("visible=true").count()
    seen = set()
    for _ in range(wanted + 4):
        page.keyboard.press("Tab")
        one = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.outerHTML.slice(0, 300), s.outlineStyle !== 'none' || s.boxShadow !== 'none'] }"
        )
        if not one[0].startswith("<body"):
            assert one[1], one[0]
            seen.add(one[0])
    assert len(seen) >= wanted - 1


@pytest.mark.parametrize("path", SECTIONS.values(), ids=SECTIONS)
def test_a_narrow_screen_needs_no_scrolling_sideways(open_page, path):
    page = open_page(path, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", SECTIONS.values(), ids=SECTIONS)
def test_who_cannot_see_the_page_can_read_it(open_page, path, scheme):
    page = open_page(path, color_scheme=scheme, reduced_motion="reduce")
    found = axe.Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()


def test_an_open_page_sees_what_changes(open_page, tmp_path):
    """By htmx under the page's own policy: what is polled is swapped in."""
    folder = make_run(tmp_path).path
    with viewing(folder) as base, Workspace(folder).hold():
        note = '{"state": "running", "stage": "waiting", "done": %d, "total": 9, "unit": "steps"}'
        (folder / "progress.json").write_text(note % 3)
        page = open_page(f"{base}/")
        page.get_by_text("3 of 9 steps").wait_for()
        (folder / "progress.json").write_text(note % 7)
        page.get_by_text("7 of 9 steps").wait_for()


@pytest.fixture(scope="module")
def two_models(tmp_path_factory) -> Path:
    """A run's folder with two real models, of random weights."""
    folder = tmp_path_factory.mktemp("arena")
    maker = Maker(folder / "run")
    for seed, name in enumerate(("calm", "loud")):
        make_model(folder / name, seed)
        maker.seal(name, "sft", "model", {path.name: path for path in (folder / name).iterdir()})
    return maker.finish().path


def by_mouse(page, question: str, vote: str) -> None:
    page.get_by_label("question").fill(question)
    page.get_by_role("button", name="Ask two of them").click()
    page.get_by_role("button", name=vote).click()


def by_keys(page, question: str, key: str) -> None:
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Tie").wait_for()
    page.keyboard.press(key)


def test_three_rounds_by_mouse_and_three_by_keys_are_pairs_for_import(open_page, two_models, tmp_path, monkeypatch):
    from potstill.cli import main

    plays = [
        (by_mouse, "Left is better", "model_a"), (by_mouse, "Both are bad", "tie (bothbad)"),
        (by_mouse, "Right is better", "model_b"), (by_keys, "1", "model_a"), (by_keys, "3", "tie"),
        (by_keys, "ArrowRight", "model_b"),
    ]  # fmt: skip
    with viewing(two_models) as base:
        page = open_page(f"{base}/", reduced_motion="reduce")
        page.get_by_role("link", name="Arena").click()
        for number, (play, how, _) in enumerate(plays):
            play(page, f"what is pot {number}?", how)
            told = page.get_by_role("heading", level=1).filter(has_text="Left was")
            told.wait_for()
            assert {"calm", "loud"} <= set(re.findall(r"\w+", told.inner_text()))
            assert f"{number + 1} vote{'s' if number else ''} so far" in page.inner_text("main")
            assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        assert "a tie, both bad" in page.locator("dialog#keys").inner_text()
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Standings").click()
        assert page.locator("tbody tr").count() == 2
        assert re.search(r"\d\.\d% to \d+\.\d%", page.inner_text("main"))
    votes = [json.loads(line) for line in (two_models / "arena.jsonl").read_text().splitlines()]
    assert [vote["winner"] for vote in votes] == [winner for _, _, winner in plays]
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        f"name: r\nstages:\n  pairs: {{kind: import, path: '{two_models / 'arena.jsonl'}', rows: pairs}}\n"
    )
    assert main(["run", "r.yaml"]) == 0
    pairs = [json.loads(line) for line in Path("runs/r/pairs/rows.jsonl").read_text().splitlines()]
    said = {
        vote["question_id"]: [vote[f"conversation_{side}"][1]["content"].strip() for side in "ab"] for vote in votes
    }
    apart = [vote for vote in votes if all(said[vote["question_id"]]) and len(set(said[vote["question_id"]])) == 2]
    assert apart, "untrained models may say nothing, or both the same: no pair then; but not six times"
    decided = [vote for vote in apart if vote["winner"].startswith("model")]
    for pair, vote in zip(pairs, decided, strict=True):
        better, worse = ("a", "b") if vote["winner"] == "model_a" else ("b", "a")
        assert pair["prompt"][-1]["content"] == vote["conversation_a"][0]["content"]
        assert pair["chosen"][-1]["content"] == vote[f"conversation_{better}"][1]["content"]
        assert pair["rejected"][-1]["content"] == vote[f"conversation_{worse}"][1]["content"]
    reasons = [json.loads(line)["reason"] for line in Path("runs/r/pairs/dropped.jsonl").read_text().splitlines()]
    assert len(reasons) == len(votes) - len(pairs)
    assert reasons.count("tie") == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_who_cannot_see_the_arena_can_vote(open_page, two_models, scheme):
    """Axe on a round before the vote and after it, on a narrow screen too."""
    with viewing(two_models) as base:
        page = open_page(f"{base}/arena", color_scheme=scheme, viewport={"width": 360, "height": 740})
        page.get_by_label("question").fill("what is pot?")
        page.keyboard.press("Enter")
        for button in ("Tie", "Ask two of them"):
            page.get_by_role("button", name=button).wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            found = axe.Axe().run(page, options=RULES)
            assert found.violations_count == 0, found.generate_report()
            page.keyboard.press("3")


def test_the_arena_works_without_a_script(open_page, two_models):
    with viewing(two_models) as base:
        page = open_page(f"{base}/arena", java_script_enabled=False)
        page.get_by_label("question").fill("what is pot?")
        page.get_by_role("button", name="Ask two of them").click()
        page.wait_for_url("**/arena/round/*")
        again = page.get_by_role("link", name="Look again")
        while again.count():
            page.goto(base + again.get_attribute("href"))
        page.get_by_role("button", name="Tie").click()
        page.get_by_role("heading", name="Left was").wait_for()


@pytest.mark.parametrize("seconds", [0.5, 3.0, 5.0, 6.0])
def test_ctrl_c_ends_it_while_models_are_loaded_or_write(two_models, seconds):
    """`viewing` asks for exit code 0 and silence."""
    with viewing(two_models) as base:
        body = urllib.parse.urlencode({"question": "what is pot?"}).encode()
        asked = urllib.request.Request(f"{base}/arena", body, headers={"Sec-Fetch-Site": "same-origin"})
        urllib.request.urlopen(asked).close()
        time.sleep(seconds)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The frozen report of the same run."""
    workspace = make_run(tmp_path_factory.mktemp("frozen"))
    file = workspace.path / "report.html"
    file.write_text(
        frozen_page(REPORT, {"chats": {"seconds": 1.0, "sealed_before": False}}, workspace.path, survey(workspace))
    )
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_compares_two_models_from_a_file(open_page, report, scheme):
    page = open_page(report.as_uri(), color_scheme=scheme)
    chosen = page.locator("article.compare .choose select")
    chosen.nth(0).select_option("base")
    chosen.nth(1).select_option("dpo")
    first = page.locator("article.compare .question").first
    assert first.locator(".apart").inner_text() == "−8.00"
    first.locator("summary").click()
    assert first.locator(".answer").locator("visible=true").count() == 2
    page.locator("svg.graph a", has_text="pairs").first.click()
    assert page.url.endswith("#stage-pairs")
    found = axe.Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()


def test_the_report_reads_well_without_its_script(open_page, report):
    page = open_page(report.as_uri(), java_script_enabled=False, viewport={"width": 360, "height": 740})
    page.locator("article.compare .question summary").first.click()
    assert page.locator("article.compare .question").first.locator(".answer").locator("visible=true").count() == 3
    assert page.locator(".choose").locator("visible=true").count() == 0
