"""The pages of a run: what each shows, that texts stay texts, who may ask, what is damaged."""

import json
import re
from pathlib import Path

import pytest
from pages import Page
from starlette.testclient import TestClient
from view_run import HOSTILE, make_run

from potstill.errors import StorageError
from potstill.runs.workspace import Workspace
from potstill.verbs import view as verb
from potstill.view.server import ASSETS, HEADERS, LOOPBACK, listen, make_app

PAGES = [
    "/", "/stage/chats", "/stage/dpo", "/stage/dpo%5Bseed=0%5D", "/stage/scores", "/stage/waiting", "/rows/chats",
    "/rows/rated?q=wise", "/rows/chats?file=dropped.jsonl", "/rows/scores", "/row/0/pairs", "/row/3/rated", "/scores",
    "/compare", "/compare?suite=chat&a=base&b=dpo&order=worst", "/audits", "/nothing", "/stage/nothing",
    "/row/9999/pairs", "/rows/dpo", "/live/run", "/live/stage/chats",
]  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def client_of(workspace):
    return TestClient(make_app(workspace), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(workspace):
    return client_of(workspace)


def listed(client, address):
    """The ids of the rows on a page, and the page."""
    found = client.get(address)
    assert found.status_code == 200, found.text
    page = Page(found.text)
    return [int(n.replace(",", "")) for n in re.findall(r'class="number">([\d,]+)<', found.text)], page


@pytest.mark.parametrize("address", PAGES)
def test_every_page_has_the_headers_and_asks_nobody_else(client, address):
    found = client.get(address)
    assert found.status_code == (404 if re.search("nothing|9999|rows/dpo", address) else 200), found.text[-500:]
    for name, value in HEADERS.items():
        assert found.headers[name] == value
    page = Page(found.text)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "style", (tag, value)
        if name in ("href", "src", "action", "hx-get", "srcset", "data", "poster"):
            assert re.match(r"/(?!/)|#|data:,$", value), (tag, name, value)
    assert not {"iframe", "object", "embed", "base", "img", "style"} & set(page.tags)
    scripts = [value for tag, name, value in page.attributes if tag == "script" and name == "src"]
    assert page.tags.count("script") == len(scripts)
    assert not re.search("[\x00\x1b\u202e]", found.text)


def test_no_file_of_the_package_asks_anybody(client):
    for name in ASSETS:
        found = client.get(f"/static/{name}")
        assert found.status_code == 200
        assert not re.search(r"@import|url\(|@font-face", found.text) or name.endswith(".js")
    assert client.get("/static/../pyproject.toml").status_code == 404


@pytest.mark.parametrize(
    "address", ["/", "/stage/chats", "/row/3/rated", "/rows/chats", "/compare", "/static/style.css"]
)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1:8000"])
def test_a_name_from_elsewhere_is_refused(client, address, host):
    found = client.get(address, headers={"Host": host})
    assert found.status_code == 400
    assert "chats" not in found.text
    assert found.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["127.0.0.1:9999", "localhost:8000", "localhost"])
def test_this_machine_by_its_names_is_answered(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "address", ["/row/0/rated", "/row/1/chats", "/row/2/pairs", "/stage/chats", "/compare?a=sft&b=dpo"]
)
def test_hostile_texts_stay_texts(client, address):
    page = Page(client.get(address).text)
    assert any(text[:20] in page.text for text in HOSTILE)
    assert not [one for one in page.attributes if "evil.example" in one[2] and one[1] != "value"]
    assert 'dir="auto"' in client.get(address).text


def test_the_run_shows_the_graph_with_families_folded(client):
    text = client.get("/").text
    assert text.count('class="node ') == 7
    assert 'href="/stage/dpo"' in text
    assert "2 of 2" in text
    assert "waits" in text
    assert "Nobody works in this folder" in text


def test_a_stage_says_what_it_reads_and_who_reads_it(client):
    page = Page(client.get("/stage/pairs").text)
    assert ("a", "href", "/stage/rated") in page.attributes
    assert ("a", "href", "/stage/dpo%5Bseed%3D0%5D") in page.attributes


def test_drop_reasons_lead_to_the_rows(client):
    page = Page(client.get("/stage/chats").text)
    (address,) = [v for t, n, v in page.attributes if n == "href" and "reason=tie" in v]
    numbers, _ = listed(client, address)
    assert numbers == list(range(1, 26, 2))


def test_what_is_learnt_is_marked(client):
    text = client.get("/row/0/chats").text
    assert text.count('<span class="mark">learnt</span>') == 1
    assert text.count('<span class="mark not">not learnt</span>') == 1


def test_a_pair_stands_side_by_side_and_an_answer_with_its_ratings(client):
    pair = Page(client.get("/row/4/pairs").text).text
    assert "good 4" in pair
    assert "bad 4" in pair
    assert "score 5" in pair
    rated = Page(client.get("/row/1/rated").text).text
    for words in ("sage", "forger", "helpfulness", "wrong", HOSTILE[1]):
        assert words in rated


def test_pages_follow_each_other_by_address(client):
    seen, address = [], "/rows/chats"
    while address:
        numbers, page = listed(client, address)
        seen += numbers
        address = next(iter(page.links("next")), None)
    assert seen == list(range(1, 61))
    back = []
    address = page.links("prev")[0]
    while address:
        numbers, page = listed(client, address)
        back = numbers + back
        address = next(iter(page.links("prev")), None)
    assert back == list(range(1, 41))


def test_search_finds_words_in_texts_not_names_of_fields(client):
    assert listed(client, "/rows/rated?q=zebraFINCH")[0] == [42]
    assert listed(client, "/rows/rated?q=candidates")[0] == []
    assert listed(client, '/rows/rated?q="wise 5" question')[0] == [6, *range(51, 61)]
    assert "No row matches" in client.get("/rows/rated?q=candidates").text


def test_a_search_is_paged_both_ways(client):
    first, page = listed(client, "/rows/rated?q=false")
    second, page = listed(client, page.links("next")[0])
    third, page = listed(client, page.links("next")[0])
    assert first + second + third == list(range(1, 61))
    assert not page.links("next")
    assert listed(client, page.links("prev")[0])[0] == second


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("category=math", list(range(2, 60, 4))),
        ("finish=length", [8]),
        ("rating=1&category=writing", [1, 13, 25, 37, 49]),
        ("model=sage&q=zebrafinch", [42]),
        ("model=nobody", []),
        ("rating=soon&q=zebrafinch", [42]),
        ("start=99999999999999999999999&q=zebrafinch", [42]),
        ("start=-3&q=zebrafinch", [42]),
    ],
)
def test_filters(client, asked, expected):
    assert listed(client, f"/rows/rated?{asked}")[0] == expected


def test_neighbours_of_a_row_are_those_that_match(client):
    page = Page(client.get("/row/5/rated?category=math").text)
    assert page.links("next")[0].startswith("/row/9/rated")
    assert page.links("prev")[0].startswith("/row/1/rated")


def test_any_two_models_are_compared_the_widest_first(client):
    text = client.get("/compare?suite=chat&a=dpo&b=sft").text
    found = [float(one.replace("−", "-")) for one in re.findall(r'class="apart">([^<]+)<', text)]
    assert len(found) == 15
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (6.0, 3.0)
    assert "95% interval" in text
    turned = client.get("/compare?suite=chat&a=sft&b=dpo").text
    assert re.findall(r'class="apart">([^<]+)<', turned)[0] == "−6.00"
    assert "on 0, less on 24, as much on 0" in Page(turned).text
    assert "judged" in Page(turned).text
    assert client.get("/compare?suite=x&a=y&b=z&order=q&start=-1").status_code == 200


def test_scores_stand_with_their_intervals(client):
    page = Page(client.get("/scores").text)
    assert "95% interval" in page.text
    assert "svg" in page.tags


def test_a_page_that_is_up_to_date_gets_nothing(client):
    text = client.get("/").text
    address = re.search(r'hx-get="([^"]+)"', text)[1]
    assert client.get(address).status_code == 204
    fresh = client.get("/live/run?seen=old")
    assert fresh.status_code == 200
    assert "<html" not in fresh.text


def test_a_page_sees_that_a_stage_runs(tmp_path):
    workspace = make_run(tmp_path)
    client = client_of(workspace)
    address = re.search(r'hx-get="([^"]+)"', client.get("/").text)[1]
    note = {"state": "running", "stage": "waiting", "began": 1.0, "since": 1.0, "at": 61.0, "done": 50, "total": 150,
            "unit": "steps", "figures": {"loss": 1.25}}  # fmt: skip
    (tmp_path / "progress.json").write_text(json.dumps(note))
    curves = "".join(json.dumps({"step": s, "split": "train", "loss": 5.0 - s}) + "\n" for s in range(1, 4))
    (tmp_path / "logs" / "waiting-0123456789ab.curves.jsonl").write_text(curves + '{"step": 4, "spl')
    with workspace.hold():
        text = client.get(address).text
        assert "50 of 150 steps" in text
        assert "about 2 min 00 s left" in text
        assert 'class="node running"' in text
        stage = client.get("/stage/waiting").text
        assert '<progress max="150" value="50"' in stage
        assert 'aria-label="waiting: loss"' in stage
    assert "was stopped" in client.get("/stage/waiting").text
    (tmp_path / "progress.json").write_text(json.dumps({**note, "state": "failed"}))
    assert "did not finish" in client.get("/").text


def file_of(workspace, stage, name):
    return next((workspace.path / "artifacts").glob(f"{stage}-*")) / name


def spoil(workspace, stage, name):
    """Other bytes of the same number, which nothing but their hash tells."""
    file = file_of(workspace, stage, name)
    file.write_bytes(bytes(b"\xff{"[i % 2] if b != 10 else b for i, b in enumerate(file.read_bytes())))


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("chats", "rows.jsonl"), ("chats", "dropped.jsonl"), ("rated", "rows.jsonl"), ("scores", "scores.json"),
        ("scores", "answers.jsonl"), ("dpo0", "curves.jsonl"), ("chats", "manifest.json"), ("scores", "manifest.json"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["spoilt", "cut", "gone", "empty"])
def test_nothing_damaged_brings_a_page_down(tmp_path, stage, name, how):
    workspace = make_run(tmp_path)
    file = file_of(workspace, stage, name)
    match how:
        case "spoilt":
            spoil(workspace, stage, name)
        case "cut":
            file.write_bytes(file.read_bytes()[:-7])
        case "gone":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
    client = client_of(workspace)
    for address in PAGES:
        found = client.get(address)
        assert found.status_code < 500, (address, found.text[-300:])
        assert "Traceback" not in found.text
    assert client.get("/").status_code == 200


def test_a_damaged_line_says_so_in_its_place(tmp_path):
    workspace = make_run(tmp_path)
    file = file_of(workspace, "pairs", "rows.jsonl")
    lines = file.read_bytes().split(b"\n")
    lines[2] = b"\x00" * len(lines[2])
    file.write_bytes(b"\n".join(lines))
    client = client_of(workspace)
    assert len(listed(client, "/rows/pairs")[0]) == 20
    assert "cannot be read" in client.get("/row/2/pairs").text
    assert "good 3" in client.get("/row/3/pairs").text


def test_a_description_that_is_damaged_meanwhile_is_told(tmp_path):
    workspace = make_run(tmp_path)
    client = client_of(workspace)
    (tmp_path / "run.json").write_text("{")
    found = client.get("/")
    assert found.status_code == 409
    assert "not a run&#39;s description" in found.text


@pytest.mark.parametrize("name", ["journal.sqlite", "times.json", "progress.json"])
def test_damaged_notes_cost_what_they_say(tmp_path, name):
    (make_run(tmp_path).path / name).write_bytes(b"\x00rubbish" * 99)
    assert client_of(Workspace(tmp_path)).get("/").status_code == 200


@pytest.mark.parametrize("name", ["../../run.json", "manifest.json", "/etc/passwd", "rows.jsonl/../manifest.json"])
def test_no_file_beside_the_rows_is_shown(client, name):
    assert client.get("/rows/chats", params={"file": name}).status_code == 404


def test_a_port_that_is_taken_is_one_clear_line():
    with listen(0) as first:
        assert first.getsockname()[0] == LOOPBACK
        with pytest.raises(StorageError, match="cannot be listened on"):
            listen(first.getsockname()[1])


def test_a_run_that_is_not_there_is_one_clear_line(tmp_path, capsys, monkeypatch):
    from potstill.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        assert main(["view", name, "--no-browser"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
    for name in ("view", "serve"):
        with pytest.raises(SystemExit) as caught:
            main([name, "empty", "--port", "99999"])
        assert caught.value.code == 2
        assert "is no port" in capsys.readouterr().err


def test_a_browser_is_opened_only_where_there_is_a_display(monkeypatch):
    for name in verb.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert not verb._has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert verb._has_display()


def test_the_licence_of_what_others_wrote_is_beside_it():
    folder = Path(__file__).parents[2] / "src" / "potstill" / "view" / "static"
    assert "Zero-Clause BSD" in (folder / "htmx.LICENSE.txt").read_text()
