"""A user's own functions from a recipe: found, hashed, loaded, called, and blamed by file and line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from potstill import own, stages
from potstill.artifact import read_rows
from potstill.cli import main
from potstill.errors import DataError, RecipeError
from potstill.own import Own, OwnFilter, OwnFunction, OwnOrWord
from potstill.recipe import load_recipe
from potstill.recipe.references import slots
from potstill.records import Chat, Dropped, Message, Text
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import Function, Inputs
from potstill.stages.asking import Asking
from potstill.stages.base import Stage, StageConfig

STAGE = '''
"""Louder."""
from collections.abc import Iterator
from potstill.records import Chat, Dropped


def shout(data: Iterator[Chat], *, mark: str = "!", short: int = 0) -> Iterator[Chat | Dropped]:
    """Say every answer louder."""
    for chat in data:
        *before, answer = chat.messages
        if len(answer.content) < short:
            yield Dropped(id=chat.id, reason="short", detail=str(len(answer.content)))
        else:
            louder = answer.model_copy(update={"content": answer.content.upper() + mark})
            yield chat.model_copy(update={"messages": (*before, louder)})
'''
RECIPE = """
name: own
stages:
  chats: {kind: import, path: chats.jsonl, rows: chats}
  loud: {kind: mine.py:shout, data: chats, short: 2}
  again: {kind: "mine.py:shout", data: [loud, chats.jsonl], mark: "?"}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(STAGE)
    (tmp_path / "r.yaml").write_text(RECIPE)
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]}
        for text in ("yes", "n", "maybe")
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def keys(*overrides: str) -> dict[str, str]:
    folder = Path("unused")
    plan = make_plan(load_recipe("r.yaml", overrides), Workspace(folder), Hashes(folder / "hashes.json"))
    return {name: step.key for name, step in plan.steps.items()}


def refused(*overrides: str) -> str:
    with pytest.raises((RecipeError, DataError)) as caught:
        run(load_recipe("r.yaml", overrides), Path("out"))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_function_is_a_stage(here: Path) -> None:
    sealed = run(load_recipe("r.yaml"), here / "out")
    loud = sealed["loud"]
    said = [row.messages[-1].content for row in read_rows(loud.path / "rows.jsonl", Chat)]
    assert said == ["YES!", "MAYBE!"]
    dropped = list(read_rows(loud.path / "dropped.jsonl", Dropped))
    assert dropped == [Dropped(id="chats-1", reason="short", detail="1")]
    assert loud.facts == {"rows": 2, "read": 3, "dropped": {"short": 1}}
    assert sealed["again"].facts["rows"] == 5, "several sources, a file among them, one after another"
    assert loud.produces == "chats"
    manifest = loud.manifest
    assert manifest["kind"] == "mine.py:shout"
    assert manifest["config"] == {"kind": "mine.py:shout", "data": "chats", "mark": "!", "short": 2}
    assert str(here) not in json.dumps(manifest)
    before = {path: path.stat().st_mtime_ns for path in (here / "out" / "artifacts").rglob("*")}
    run(load_recipe("r.yaml"), here / "out")
    assert {path: path.stat().st_mtime_ns for path in (here / "out" / "artifacts").rglob("*")} == before
    assert not (here / "__pycache__").exists(), "nothing is written beside the user's file"


def test_the_key_changes_with_the_file_and_with_what_it_imports_beside_it(here: Path) -> None:
    before = keys()
    assert keys() == before
    (here / "elsewhere.py").write_text("x = 1")  # nobody imports it
    os.utime(here / "mine.py", (1, 1))
    assert keys() == before
    (here / "mine.py").write_text(STAGE + "\n# another word\n")
    after = keys()
    assert {name for name in before if before[name] != after[name]} == {"loud", "again"}
    (here / "helper").mkdir()
    (here / "helper" / "__init__.py").write_text("from tool import louder")
    (here / "tool.py").write_text("louder = str.upper")
    (here / "mine.py").write_text(STAGE.replace("from potstill", "from helper import louder\nfrom potstill", 1))
    with_helper = keys()
    assert with_helper["loud"] != after["loud"]
    (here / "tool.py").write_text("louder = str.lower")
    assert keys()["loud"] != with_helper["loud"], "what it imports by way of another counts too"
    (here / "tool.py").write_text("louder = str.upper")
    assert keys() == with_helper
    assert keys("loud.mark=x")["loud"] != with_helper["loud"]


def test_the_key_is_the_same_wherever_the_files_lie(here: Path) -> None:
    before = keys()
    (here / "lib").mkdir()
    (here / "mine.py").rename(here / "lib" / "mine.py")
    (here / "r.yaml").write_text(RECIPE.replace("mine.py", "lib/mine.py"))
    assert keys() == before


def test_plan_and_status_and_show_know_a_stage_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "r.yaml", "--out", "out"]) == 0
    (here / "mine.py").write_text(STAGE.replace("upper()", "lower()"))
    capsys.readouterr()
    assert main(["plan", "r.yaml", "--out", "out"]) == 0
    assert "mine.py changed" in capsys.readouterr().out
    assert main(["show", "out", "loud"]) == 0
    shown = capsys.readouterr().out
    assert "loud (mine.py:shout, makes chats)" in shown
    assert "MAYBE!" in shown


CHANGING = """
name: changing
models: {m: {endpoint: "http://localhost:1/v1", name: nobody}}
stages:
  a: {kind: "change.py:change", data: chats.jsonl}
  b: {kind: %s}
"""


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("late.jsonl", "import, rows: chats, path: late.jsonl"),
        ("late/x.jsonl", "import, rows: chats, path: late"),
        ("mine.py", "'mine.py:shout', data: a"),
        ("note.txt", "reason, data: late.jsonl, teacher: m, prompt_files: {reason: note.txt}"),
        ("own", "'change.py:change', data: chats.jsonl"),
    ],
)
def test_a_file_that_changed_after_it_was_planned_is_refused(here: Path, file: str, kind: str) -> None:
    """Otherwise what the new text makes would be sealed under the old one's key."""
    path = here / ("chats.jsonl" if file == "own" else file)
    path.parent.mkdir(exist_ok=True)
    (here / "late.jsonl").write_text((here / "chats.jsonl").read_text())
    if not path.exists():
        path.write_text((here / "chats.jsonl").read_text())
    (here / "change.py").write_text(
        "from collections.abc import Iterator\nfrom potstill.records import Chat\n\n\n"
        "def change(data: Iterator[Chat]) -> Iterator[Chat]:\n"
        f"    yield from data\n    with open({str(path)!r}, 'a') as file:\n        file.write('\\n')\n"
    )
    recipe = CHANGING % kind
    (here / "r.yaml").write_text(recipe)
    with pytest.raises(DataError, match=r": it was changed after the run was planned.*Run again"):
        run(load_recipe("r.yaml"), here / "out")
    sealed = sorted(folder.name[0] for folder in (here / "out" / "artifacts").iterdir())
    assert sealed == ([] if file == "own" else ["a"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("loud.marc=x", "unknown key 'loud.marc' (did you mean 'mark'?). The keys here are: data, kind, mark, short"),
        ("loud.short=many", "'loud.short' is 'many': input should be a valid integer"),
        ("loud.short=1.5", "'loud.short' is 1.5: input should be a valid integer"),
        ("loud.data=[]", "no row is left"),
        ("loud.data=nothing", "'loud.data' names 'nothing', which is neither a stage of this recipe nor a file"),
        (
            "loud.kind=mine.py:shoot",
            "mine.py: there is no function 'shoot' in it; it holds Chat, Dropped, Iterator, sh",
        ),
        ("loud.kind=yours.py:shout", "there is no file 'yours.py'"),
        ("loud.kind=mine.py", "'mine.py' names no function. Write the file and the function, such as mine.py:keep"),
        ("loud.kind=shout", "or your own function, mine.py:name"),
    ],
)
def test_a_recipe_that_names_it_wrongly_is_one_clear_line(here: Path, override: str, says: str) -> None:
    assert says in refused(override)


BROKEN = [
    ("def shout(:\n", "mine.py:1: this is not valid Python: "),
    (
        "import nowhere\ndef shout(): ...\n",
        "mine.py:1: ModuleNotFoundError: No module named 'nowhere' (while importing",
    ),
    ("x = 1\n\nx['a']\ndef shout(): ...\n", "mine.py:3: TypeError: 'int' object is not subscriptable (while importing"),
    ("import sys\nsys.exit(3)\ndef shout(): ...\n", "mine.py:2: SystemExit: 3 (while importing it)"),
    ("shout = 7\n", "mine.py: 'shout' is int, not a function"),
    (b"def shout(): '\xe9'\n", "it is no text in UTF-8"),
    ("import helper\ndef shout(): ...\n", "helper.py:2: ZeroDivisionError: division by zero (while importing it)"),
    ("def shout(data) -> int: ...\n", "mine.py:1: 'shout' cannot be a stage: its parameter 'data' has no annotation"),
    ("def shout(*rows: int) -> int: ...\n", "its parameter 'rows' has no name of its own"),
    ("def shout(copy: int) -> int: ...\n", "its parameter 'copy' bears a reserved name"),
    ("def shout(mark: str = '!'): ...\n", "its annotation does not say what it returns. Expected the rows that it"),
    ("def shout(mark: str) -> str: ...\n", "its annotation does not say what it returns"),
    ("def shout(mark: 'Nothing') -> str: ...\n", "NameError: name 'Nothing' is not defined (while reading its annotat"),
    ("class A: ...\ndef shout(mark: A) -> list[int]: ...\n", "does not say what it returns"),
]


@pytest.mark.parametrize(("source", "says"), BROKEN)
def test_a_broken_file_is_one_clear_line_with_its_place(here: Path, source: str | bytes, says: str) -> None:
    (here / "helper.py").write_text("\n1 / 0\n")
    (here / "mine.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    assert says in refused()


RAISES = [
    (
        "for chat in data:\n        yield chat.model_copy()['x']",
        "mine.py:4: TypeError: 'Chat' object is not subscripta",
    ),
    ("yield from [{}['x'] for chat in data]", "mine.py:3: KeyError: 'x' (while making rows, 1 read)"),
    ("return 7", "'shout' returned int; expected the rows that it makes, such as Iterator[Chat]"),
    ("yield 7", "'shout' returned int among its rows; expected Chat or Dropped"),
    ("yield from ()", "mine.py:shout: no row is left (it returned none)"),
    ("yield Chat(id='a', messages=())", "made a row that cannot be used: a: the conversation has no messages"),
    (
        "raise OSError(28, 'No space left on device')\n    yield",
        "mine.py:3: OSError: [Errno 28] No space left on device",
    ),
    (
        "yield next(data).model_copy(update={'id': 1 / 0})",
        "mine.py:3: ZeroDivisionError: division by zero (while making",
    ),
]


@pytest.mark.parametrize(("body", "says"), RAISES)
def test_what_it_raises_or_returns_wrongly_is_one_clear_line(here: Path, body: str, says: str) -> None:
    head = "from potstill.records import *; from collections.abc import Iterator\n"
    head += "def shout(data: Iterator[Chat], mark: str = '', short: int = 0) -> Iterator[Chat]:\n"
    (here / "mine.py").write_text(f"{head}    {body}\n")
    assert says in refused()
    assert not list((here / "out" / "artifacts").glob("loud*")), "nothing half-written"


def test_a_bad_row_of_what_it_reads_is_told_as_the_rows_own_fault(here: Path) -> None:
    with (here / "chats.jsonl").open("a") as file:
        file.write('{"messages": 7}\n')
    said = refused("chats.limit=2", "loud.data=chats.jsonl")
    assert re.match(r".*chats\.jsonl:4: 'messages' is a number; expected a list of messages", said)


def test_a_stage_of_ones_own_asks_a_teacher_of_the_recipe(here: Path) -> None:
    (here / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from collections.abc import Iterator\n"
        "from potstill.records import Chat, Message, Prompt\n"
        "from potstill.stages.base import Work\n"
        "from potstill.teachers.base import Request, Teacher, request_seed\n"
        "def answer(prompts: Iterator[Prompt], teacher: Teacher, work: Work, temperature: float = 0) -> list[Chat]:\n"
        "    asked = list(prompts)\n"
        "    requests = (Request(p.messages, 50, temperature, seed=request_seed(work.seed, p.id)) for p in asked)\n"
        "    return [p_chat(p, r.text) for p, r in zip(asked, teacher.complete(requests), strict=True)]\n"
        "def p_chat(prompt: Prompt, text: str) -> Chat:\n"
        "    return Chat(id=prompt.id, messages=(*prompt.messages, Message(role='assistant', content=text)))\n"
    )
    (here / "r.yaml").write_text(
        "name: own\nservers: {w: {kind: miniature}}\nmodels: {scribe: {endpoint: w, name: sage}}\n"
        "stages: {chats: {kind: 'mine.py:answer', prompts: q.txt, teacher: scribe}}\n"
    )
    (here / "q.jsonl").write_text("")
    (here / "q.txt").write_text("")
    recipe = load_recipe("r.yaml", ["chats.prompts=chats.jsonl"])
    assert run(recipe, here / "out")["chats"].facts["rows"] == 3
    with pytest.raises(RecipeError, match=r"'chats.teacher' needs a model|names 'chats.jsonl', which is no model"):
        load_recipe("r.yaml", ["chats.prompts=chats.jsonl", "chats.teacher=chats.jsonl"])


class Uses(StageConfig):
    """A stage that takes functions in every way."""

    kind: Literal["uses"] = "uses"
    filters: tuple[OwnFunction, ...] = ()
    check: OwnFunction | None = None
    checks: dict[str, OwnOrWord] = {}  # noqa: RUF012


def test_functions_stand_in_every_kind_of_field() -> None:
    config = Uses(filters=("a.py:f", "b.py:g"), check="c.py:h", checks={"one": "math", "two": "d.py:i"})
    found = {slot.field: [named.name for named in slot.names] for slot in slots(config)}
    assert found == {
        "filters": ["a.py:f", "b.py:g"],
        "check": ["c.py:h"],
        "checks.one": ["math"],
        "checks.two": ["d.py:i"],
    }
    assert [own.is_own(text) for text in ("math", "d.py:i", "mine.py")] == [False, True, True]


def chat(text: str) -> Chat:
    return Chat(id="abc", messages=(Message(role="user", content="q"), Message(role="assistant", content=text)))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("return True", None),
        ("return None", None),
        ("import numpy; return numpy.float64(1) > 0", None),
        ("import numpy; return numpy.float64(1) < 0", ("keep", "")),
        ("return False", ("keep", "")),
        ("return 'too loud'", ("keep", "too loud")),
        ("return Dropped(id='', reason='loud', detail='!!')", ("loud", "!!")),
    ],
)
def test_a_filter_says_what_becomes_of_a_row(tmp_path: Path, body: str, fault: Any) -> None:
    (tmp_path / "mine.py").write_text(f"from potstill.records import Dropped\ndef keep(row): {body}\n")
    assert OwnFilter(Function(tmp_path / "mine.py", "keep")).fault(chat("a")) == fault


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 7", r"mine\.py: 'keep' returned int for row abc; expected True or None to keep it"),
        ("return []", r"mine\.py: 'keep' returned list for row abc"),
        ("return row['x']", r"mine\.py:1: TypeError: .* \(while filtering row abc\)\. Mend 'keep', or the row"),
        ("raise SystemExit(1)", r"mine\.py:1: SystemExit: 1 \(while filtering row abc\)"),
        ("return helper.deep(row)", r"helper\.py:2: KeyError: 'x' \(while filtering row abc\)"),
    ],
)
def test_a_filter_that_fails_is_one_clear_line(tmp_path: Path, body: str, says: str) -> None:
    (tmp_path / "helper.py").write_text("def deep(row):\n    return {}['x']\n")
    (tmp_path / "mine.py").write_text(f"def keep(row): import helper; {body}\nimport helper\n")
    with pytest.raises(DataError, match=says):
        OwnFilter(Function(tmp_path / "mine.py", "keep")).fault(chat("a"))


def test_two_files_of_one_name_and_their_helpers_are_told_apart(tmp_path: Path) -> None:
    calls = []
    for word in ("one", "two"):
        (tmp_path / word).mkdir()
        (tmp_path / word / "helper.py").write_text(f"word = {word!r}")
        (tmp_path / word / "mine.py").write_text("import helper\ndef say(): return helper.word")
        calls.append(Own(Function(tmp_path / word / "mine.py", "say")))
    assert [call("saying") for call in calls] == ["one", "two"]
    (tmp_path / "one" / "helper.py").write_text("word = 'new'")
    assert Own(Function(tmp_path / "one" / "mine.py", "say"))("saying") == "new", "an edit is seen at once"
    assert str(tmp_path / "one") not in sys.path


def test_a_function_reaches_the_process_that_trains(tmp_path: Path) -> None:
    inputs = Inputs({}, {}, {}, {"objective": (Function(tmp_path / "mine.py", "loss"),)})
    assert Inputs.from_json(json.loads(json.dumps(inputs.to_json()))) == inputs


def test_planning_runs_no_line_of_a_file_that_is_no_stage(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit\nfrom math import sin as keep\n")
    own.check(Function(tmp_path / "mine.py", "keep"))
    with pytest.raises(RecipeError, match="there is no function 'sin' in it; it holds keep"):
        own.check(Function(tmp_path / "mine.py", "sin"))
    (tmp_path / "mine.py").write_text("from math import *\n")
    own.check(Function(tmp_path / "mine.py", "sin"))
    assert Own(Function(tmp_path / "mine.py", "sin"))("counting", 0.0) == 0.0


class Polite(Asking):
    """A stage that asks, with prompts that a user may replace."""

    PROMPTS = ("self_instruct",)
    kind: Literal["polite"]


def test_a_prompt_of_ones_own_changes_the_key_with_its_text(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("polite")
    module.STAGE = Stage(config=Polite, produces="texts", run=lambda *given: {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "polite_of_test_own", module)
    monkeypatch.setitem(stages.MODULES, "polite", "polite_of_test_own")
    (here / "wording.txt").write_text("One {{ prompt }}")
    (here / "r.yaml").write_text(
        "name: own\nstages:\n"
        "  mine: {kind: polite, prompt_files: {self_instruct: wording.txt}}\n"
        "  plain: {kind: polite}\n"
    )
    before = keys()
    assert keys() == before
    (here / "wording.txt").write_text("Another {{ prompt }}")
    after = keys()
    assert before["mine"] != after["mine"]
    assert before["plain"] == after["plain"]


def test_an_error_in_it_is_exit_code_two_without_a_traceback(here: Path) -> None:
    (here / "mine.py").write_text(STAGE.replace("*before, answer = chat.messages", "before = chat.mesages"))
    shown = subprocess.run(
        [sys.executable, "-m", "potstill.cli", "run", "r.yaml"], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2
    assert "mine.py:10: AttributeError: 'Chat' object has no attribute 'mesages' (while making rows, 1 read)" in (
        " ".join(shown.stderr.split())
    )
    assert "Traceback" not in shown.stderr


def test_texts_from_nothing(here: Path) -> None:
    """A stage needs no rows to read."""
    (here / "mine.py").write_text(
        "from collections.abc import Iterator\n"
        "from potstill.records import Text\nfrom potstill.stages.base import Work\n"
        "def words(work: Work, count: int) -> Iterator[Text]:\n"
        "    return (Text(id=str(i), text=f'{work.seed}') for i in range(count))\n"
    )
    (here / "r.yaml").write_text("name: own\nstages: {words: {kind: 'mine.py:words', count: 2}}")
    sealed = run(load_recipe("r.yaml"), here / "out")
    assert len(list(read_rows(sealed["words"].path / "rows.jsonl", Text))) == 2


@pytest.mark.parametrize(
    "code", ["raise GeneratorExit", "raise BaseException('b')", "import asyncio; raise asyncio.CancelledError"]
)
@pytest.mark.parametrize("before", ["", "yield next(data); "])
def test_nothing_that_own_code_raises_ends_a_run_in_silence(here: Path, code: str, before: str) -> None:
    body = f"    {before}{code}\n    yield from data\n"
    (here / "mine.py").write_text(STAGE.partition("    for chat in data")[0] + body)
    said = r"^mine\.py:9: \w+(: b)? \(while making rows, \d read\)\. Mend 'shout', or the row\.$"
    assert re.search(said, refused())


def test_own_code_may_not_leave_the_working_directory(here: Path) -> None:
    """The run's paths may be relative to it."""
    (here / "elsewhere").mkdir()
    (here / "mine.py").write_text(
        STAGE.replace("    for chat in data:", "    import os\n    for chat in data:\n        os.chdir('elsewhere')")
    )
    assert "'shout' changes the working directory; expected it to stay" in refused()
    assert Path.cwd() == here
    (here / "mine.py").write_text("import os\nos.chdir('elsewhere')\n" + STAGE)
    assert "changes the working directory" in refused()


def test_dropped_rows_are_shown_by_their_own_details_where_a_stage_notes_no_examples(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "r.yaml", "--out", "out"]) == 0
    capsys.readouterr()
    assert main(["show", "out", "loud", "--dropped"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("short "))
    assert line.split() == ["short", "1", "chats-1:", "1"]


HALF = r"'a \ud83d'"


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (
            f"chat.model_copy(update={{'messages': (*before, answer.model_copy(update={{'content': {HALF}}}))}})",
            r"made a row that cannot be used: chats-0: PydanticSerializationError: .*surrogates not allowed",
        ),
        (f"chat.model_copy(update={{'id': {HALF}}})", r"cannot be used: a \\ud83d: PydanticSerializationError"),
        (f"Dropped(id='x', reason={HALF})", r"cannot be used: x: PydanticSerializationError"),
        ("Dropped.model_construct(id=1, reason=5)", r"cannot be used: 1: id: Input should be a valid string"),
        ("type('Mine', (Dropped,), {})(id='x', reason='y')", "returned Mine among its rows; expected Chat or Dropped"),
        ("Chat.model_construct(id=5, messages='x')", r"cannot be used: 5: id: Input should be a valid string"),
        ("chat.model_copy(update={'messages': 5})", r"chats-0: messages: Input should be a valid (array|tuple)"),
        ("chat.model_copy(update={'message': 5})", r"chats-0: TypeError: there is no field 'message' in a Chat"),
        ("Chat(id='x', messages=(*before, answer.model_copy(update={'text': 'x'})))", r"no field 'text' in a Message"),
        ("Chat.model_construct(id='x')", r"cannot be used: x: "),
        ("Chat.model_construct()", r"made a row that cannot be used: "),
        ("chat.model_copy(update={'id': object()})", r"made a row that cannot be used: <object"),
    ],
)
def test_a_row_made_without_validation_is_one_clear_line(here: Path, made: str, says: str) -> None:
    """`model_copy` and `model_construct` check nothing, so that a row may hold what no file can or no stage reads."""
    (here / "mine.py").write_text(STAGE.replace("yield chat.model_copy", f"yield {made}\n            chat.model_copy"))
    assert re.search(rf"^mine\.py: 'shout' .*{says}", refused())
    assert not list((here / "out" / "artifacts").glob("loud-*/manifest.json"))


def test_a_number_that_no_file_can_hold_is_refused_in_a_row(here: Path) -> None:
    (here / "mine.py").write_text(
        "from collections.abc import Iterator\nfrom potstill.records import Chat, Pair\n"
        "def pairs(data: Iterator[Chat]) -> Iterator[Pair]:\n"
        "    for chat in data:\n"
        "        *before, said = chat.messages\n"
        "        worse = said.model_copy(update={'content': 'no.'})\n"
        "        yield Pair(id='p', prompt=before, chosen=[said], rejected=[worse], chosen_score=float('nan'))\n"
    )
    (here / "r.yaml").write_text("name: own\nstages: {pairs: {kind: 'mine.py:pairs', data: chats.jsonl}}")
    assert "'pairs' made a row that cannot be used: p: chosen_score: Input should be a valid number" in refused()


def test_lists_in_the_place_of_tuples_are_written_as_ever(here: Path) -> None:
    (here / "mine.py").write_text(STAGE.replace("(*before, louder)", "[*before, louder]"))
    run(load_recipe("r.yaml"), here / "out")


def test_an_error_that_cannot_be_told_is_told_by_its_name(here: Path) -> None:
    code = "    class Odd(Exception):\n        def __str__(self): 1 / 0\n    raise Odd\n    yield next(data)\n"
    (here / "mine.py").write_text(STAGE.partition("    for chat in data")[0] + code)
    assert re.search(r"^mine\.py:11: Odd \(while making rows, 0 read\)", refused())


@pytest.mark.parametrize("code", ["shutil.rmtree(work.path)", "(work.path / 'rows.jsonl').unlink()"])
def test_a_stage_that_takes_its_rows_file_away_is_one_clear_line(here: Path, code: str) -> None:
    text = STAGE.replace("*, mark", "work: Work, *, mark").replace("    for chat", f"    {code}\n    for chat")
    (here / "mine.py").write_text("import shutil\nfrom potstill.stages.base import Work\n" + text)
    assert re.search(r"^mine\.py: 'shout' takes away rows\.jsonl, which its rows are written to\.", refused())


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ("x: int = 'a'", "'x' cannot be used: input should be a valid integer"),
        ("x: int = None", "'x' cannot be used: input should be a valid integer"),
        ("x: int = True", "'x' cannot be used: .*should be a number"),
        ("x: float = float('nan')", "'x' cannot be used: input should be a finite number"),
        ("x: dict[str, Any] = {'a': [float('inf')]}", "'x' cannot be used: 'x' holds a number that is not finite"),
        ("x: object = object()", "'x' cannot be used: unable to serialize unknown type"),
        ("x: int = Field(default=0, ge=1)", "'x' cannot be used: input should be greater than or equal to 1"),
        ("teacher: Teacher = None", "'teacher' cannot be used: input should be a valid string"),
    ],
)
def test_a_default_that_is_none_is_one_clear_line(here: Path, parameter: str, says: str) -> None:
    head = "from typing import Any\nfrom pydantic import Field\nfrom potstill.teachers.base import Teacher\n"
    (here / "mine.py").write_text(head + STAGE.replace("*, mark", f"*, {parameter}, mark"))
    assert re.search(rf"^mine\.py:10: 'shout' cannot be a stage: the default of its parameter {says}", refused())


def test_a_default_is_taken_as_its_annotation_says(here: Path) -> None:
    given = "x: float = 1, y: tuple[str, ...] = ['a'], z: int = Field(ge=1), d: Iterator[Chat] = None"
    (here / "mine.py").write_text("from pydantic import Field\n" + STAGE.replace("*, mark", f"*, {given}, mark"))
    config = load_recipe("r.yaml", ["loud.z=2", "again.z=1"]).stages["loud"].config
    assert (config.x, config.y, config.z, config.d) == (1.0, ("a",), 2, ())  # type: ignore[attr-defined]
    assert isinstance(config.x, float)  # type: ignore[attr-defined]


def test_a_number_that_is_not_finite_is_refused_wherever_a_recipe_gives_it(here: Path) -> None:
    text = "from typing import Any\n" + STAGE.replace("*, mark", "*, x: Any = 0, mark")
    (here / "mine.py").write_text(text)
    said = refused("loud.x=[.nan]")
    assert "'loud': 'x' holds a number that is not finite; expected one that is" in said


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "return 'bad \\ud83d word'",
            r"mine\.py: 'keep' made a row that cannot be used: abc: PydanticSerializationErr",
        ),
        ("return Dropped.model_construct(id=1, reason=5)", r"cannot be used: abc: reason: Input should be a valid str"),
        ("return Dropped.model_construct(id=1)", r"mine\.py: AttributeError: .* \(while filtering row abc\)"),
        ("return Odd()", r"mine\.py:4: ValueError: odd \(while filtering row abc\)"),
        ("object.__setattr__(row, 'messages', ())", r"mine\.py: 'keep' changes row abc; expected it to say no more"),
        ("object.__setattr__(row, 'messages', 5)", r"mine\.py: 'keep' changes row abc"),
        ("object.__setattr__(row.messages[1], 'content', 'x')", r"mine\.py: 'keep' changes row abc"),
        ("row.__dict__.clear()", r"mine\.py: "),
    ],
)
def test_a_filter_that_returns_or_does_what_it_may_not_is_one_clear_line(tmp_path: Path, body: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(
        f"from potstill.records import Dropped\ndef keep(row): {body}\n"
        "class Odd:\n    def __getattr__(self, name): raise ValueError('odd')\n"
    )
    with pytest.raises(DataError, match=says) as caught:
        OwnFilter(Function(tmp_path / "mine.py", "keep")).fault(chat("a"))
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
