"""The run inside report.html: one file, texts that stay texts, a script that its policy names, and a bounded size."""

import base64
import hashlib
import re
from itertools import pairwise

import pytest
from pages import Page
from view_run import HOSTILE, REPORT, make_run

from potstill.reporting import frozen as module
from potstill.reporting.graph import Node, draw
from potstill.reporting.page import page
from potstill.runs.survey import survey

TIMES = {"chats": {"seconds": 1.0, "sealed_before": False}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return survey(make_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def text(run):
    return page(REPORT, TIMES, run.path, run)


def test_the_page_holds_the_run(text):
    found = Page(text)
    assert text.count('class="node ') == 7
    for words in ("The first 3 of 60 rows", "tie", "good 1", "bad 1", "wise 2", "sft says", "judged"):
        assert words in found.text
    named = {value for tag, name, value in found.attributes if name == "id"}
    led = {value[1:] for tag, name, value in found.attributes if name == "href" and value.startswith("#")}
    assert led <= named, "a link of the page leads nowhere"


def test_it_asks_nobody_and_its_policy_names_its_one_script(text):
    found = Page(text)
    assert found.tags.count("script") == 1
    script = text.split("<script>")[1].split("</script>")[0]
    (policy,) = (value for tag, name, value in found.attributes if tag == "meta" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"fetch|XMLHttp|import|eval|innerHTML|https?:", script)
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "style"
        if name in ("href", "src", "action", "srcset", "data", "poster", "hx-get"):
            assert value.startswith("#") or value == "data:,", (tag, name, value)


def test_hostile_texts_stay_texts(text):
    found = Page(text)
    for words in HOSTILE[:3]:
        assert words in found.text
    assert not {"img", "iframe", "form", "object"} & set(found.tags)
    assert not re.search("[\x00\x1b\u202e]", text)


def test_it_stays_small_and_says_what_it_leaves_out(run, monkeypatch):
    monkeypatch.setattr(module, "ALL_ANSWERS", 9_000)
    monkeypatch.setattr(module, "LONGEST_ROW_TEXT", 9)
    found = Page(page(REPORT, TIMES, run.path, run)).text
    left = int(re.search(r"(\d+) questions more are in potstill view", found)[1])
    assert 0 < left < 24
    assert found.count("sft says") == 24 - left
    assert "characters more" in found


def test_without_a_run_there_is_no_script(tmp_path):
    assert "<script" not in page(REPORT, TIMES, tmp_path)


def boxes(drawn):
    return {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'<rect class="box" x="([\d.]+)" y="([\d.]+)".*?class="name"[^>]*>([^<]*)<', drawn)
    }


def graph(reads):
    return str(draw({name: Node(name, "sealed", ["kind", ""]) for name in reads}, reads, lambda name: f"#{name}"))


def test_what_is_read_stands_above_what_reads_it_and_no_boxes_overlap():
    reads = {f"s{i}": [f"s{j}" for j in range(i) if (i * 7 + j * 3) % 4 == 0] for i in range(24)}
    at = boxes(graph(reads))
    assert set(at) == set(reads)
    for name, sources in reads.items():
        assert all(at[one][1] < at[name][1] for one in sources)
    places = sorted(at.values(), key=lambda place: (place[1], place[0]))
    for (x, y), (other_x, other_y) in pairwise(places):
        assert y != other_y or other_x - x >= 188


def test_a_line_that_a_longer_way_says_is_left_out():
    assert graph({"a": [], "b": ["a"], "c": ["a", "b"]}).count('class="edge"') == 2
    assert graph({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}).count('class="edge"') == 4


def test_a_graph_of_nothing_and_of_strangers():
    assert draw({}, {}, str) == ""
    assert graph({"a": ["elsewhere"], "b": ["b"]}).count('class="box"') == 2
