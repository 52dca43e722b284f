"""What users get wrong, each through the command line with real stages: one line that says where, what and what to do,
exit code 2, nothing that looks finished; and after the cause is mended the same command goes on."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from stub_server import Stub, completion, refusal, reply

from potstill.artifact import MANIFEST, find
from potstill.cli import main
from potstill.miniature.server import MiniatureProcess

GOOD = {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is a pot."}]}
GOOD_LINE = json.dumps(GOOD).encode() + b"\n"
IMPORT = "name: t\nstages:\n  rows: {kind: import, path: data.jsonl, rows: chats}\n"

Potstill = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def potstill(capsys: pytest.CaptureFixture[str]) -> Potstill:
    """Run one command; its exit code, and what it wrote to standard error."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(arguments)
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def mistake(potstill: Potstill) -> Callable[..., str]:
    """Run `t.yaml`, which must end with one line; nothing may look finished then. Returns the line."""

    def run(*arguments: str, out: str = "runs/t") -> str:
        code, err = potstill("run", "t.yaml", *arguments)
        assert code == 2
        return one_line(err, Path(out))

    return run


def one_line(err: str, out: Path) -> str:
    assert err.count("\n") == 1, err
    assert err.endswith(".\n")
    assert "Traceback" not in err
    assert not list((out / "artifacts").glob("s-*")), "the stage that failed is called s, and nothing of it is sealed"
    assert not list((out / "work").glob("*")), "no draft is left"
    assert all((folder / MANIFEST).is_file() for folder in (out / "artifacts").glob("*"))
    return err.rstrip("\n")


def write_recipe(stage: str, model: str = "", before: str = "") -> None:
    models = f"models:\n  m: {model}\n" if model else ""
    Path("t.yaml").write_text(f"name: t\n{models}stages:\n{before}  s: {stage}\n")


def chat(*turns: tuple[str, Any]) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}).encode() + b"\n"


# ---- files of rows

ROWS = {
    "an empty file": (b"", "{path}: the file is empty; expected one row or more. Name another file."),
    "a truncated line": (
        GOOD_LINE + GOOD_LINE[:27],
        "{path}:2: not JSON (Unterminated string starting at column 24); expected one whole JSON object on the line.",
    ),
    "no assistant turn": (
        chat(("user", "hello")),
        "{path}:1: the conversation ends with a user turn; it must end with an assistant turn.",
    ),
    "roles out of order": (
        GOOD_LINE + chat(("user", "a"), ("user", "b"), ("assistant", "c")),
        "{path}:2: turn 2 of the conversation is a user turn; expected an assistant turn there.",
    ),
    "an unknown role": (
        chat(("wizard", "a"), ("assistant", "c")),
        "{path}:1: the role of turn 1 of 'messages' is 'wizard'; expected system, user, assistant or tool.",
    ),
    "no messages": (chat(), "{path}:1: the conversation has no messages; expected one or more."),
    "invalid UTF-8": (
        GOOD_LINE + b'{"messages": "\xff"}\n',
        "{path}:2: not UTF-8 (byte 0xff at position 14); expected UTF-8 text.",
    ),
    "a lone surrogate": (
        GOOD_LINE.replace(b"pot", rb"pot \ud83d"),
        r"{path}:1: it holds half a character (the lone surrogate \ud83d); expected whole ones.",
    ),
    "a number of endless digits": (
        GOOD_LINE + b'{"messages": ' + b"7" * 5000 + b"}\n",
        "{path}:2: a number of more than 4300 digits; expected shorter ones.",
    ),
    "no shape of row": (b'{"zip": 1}\n', "{path}:1: no known shape of row has columns zip; expected such as messages,"),
}
AT_ONCE = {
    "an empty file",
    "no assistant turn",
    "an unknown role",
    "no messages",
    "a lone surrogate",
    "no shape of row",
}
"""What a glance at the first rows tells, before anything runs: none of them is of use."""


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_cannot_be_read(case: str, mistake: Callable[..., str], potstill: Potstill) -> None:
    raw, expected = ROWS[case]
    data = Path("data.jsonl").resolve()
    data.write_bytes(raw)
    write_recipe("{kind: import, path: data.jsonl, rows: chats}")
    line = mistake()
    told = "t.yaml:3: 's.path' cannot be used: " if case in AT_ONCE else ""
    assert line.startswith(told + expected.format(path=data))
    assert "Mend" in line or "Say" in line or "Name" in line or "Rename" in line
    data.write_bytes(GOOD_LINE)
    assert potstill("run", "t.yaml") == (0, "")


def test_a_bad_row_is_refused_wherever_a_file_is_read(mistake: Callable[..., str], potstill: Potstill) -> None:
    """Not only where it is imported: a stage may name a file itself."""
    Path("data.jsonl").write_bytes(GOOD_LINE + b'{"messages"')
    write_recipe("{kind: curate, data: data.jsonl}")
    assert mistake().startswith(f"{Path('data.jsonl').resolve()}:2: not JSON")
    Path("data.jsonl").write_bytes(GOOD_LINE)
    assert potstill("run", "t.yaml") == (0, "")


@pytest.mark.parametrize(("word", "truecase"), [("word ", "false"), ("pot", "true"), ("\n", "true"), ("1_", "true")])
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_message_of_two_megabytes_is_a_row_like_any_other(word: str, truecase: str, potstill: Potstill) -> None:
    """One endless word too, which a pattern may search anew from each of its letters."""
    long = word * (2_000_000 // len(word))
    Path("data.jsonl").write_bytes(chat(("user", "q " + long), ("assistant", "It is a pot.")))
    with Stub() as server:
        Path("t.yaml").write_text(
            f"name: t\nmodels:\n  m: {{endpoint: '{server.base_url}', name: m}}\nstages:\n"
            "  rows: {kind: import, path: data.jsonl, rows: chats}\n"
            f"  curated: {{kind: curate, data: rows, truecase: {truecase}, deduplicate: 0.9}}\n"
            "  prompts: {kind: import, path: curated, rows: prompts}\n"
            "  talk: {kind: converse, teacher: m, prompts: prompts, turns: [1, 1]}\n"
        )
        assert potstill("run", "t.yaml") == (0, "")
    row = json.loads((Path("runs/t/talk") / "rows.jsonl").read_text())
    assert len(row["messages"][0]["content"]) > 1_999_000
    assert row["messages"][1]["content"].startswith("echo q")
    assert potstill("show", "runs/t", "talk")[0] == 0


def test_sealed_rows_that_were_changed(mistake: Callable[..., str], potstill: Potstill) -> None:
    """At the same size, so that only who reads them can tell."""
    Path("data.jsonl").write_bytes(GOOD_LINE)
    before = "  rows: {kind: import, path: data.jsonl, rows: chats}\n"
    write_recipe("{kind: curate, data: rows}", before=before)
    assert potstill("run", "t.yaml", "--until", "rows") == (0, "")
    sealed = Path("runs/t/rows").resolve() / "rows.jsonl"
    sealed.write_bytes(b"\xff" + sealed.read_bytes()[1:])
    line = mistake()
    assert line.startswith(f"{sealed}:1: not a Chat: Invalid JSON")
    assert line.endswith("The file was changed after it was sealed; remove its folder and run again.")
    shutil.rmtree(sealed.parent)
    assert potstill("run", "t.yaml") == (0, "")


@pytest.mark.parametrize(
    ("make", "remove", "what", "rest"),
    [
        (os.mkdir, os.rmdir, "a folder", " that holds no file of rows. Name another."),
        (os.mkfifo, os.unlink, "a pipe or a device", ", not a file. Name the file itself."),
    ],
)
def test_something_else_where_a_file_should_be(
    make: Callable[[str], None],
    remove: Callable[[str], None],
    what: str,
    rest: str,
    mistake: Callable[..., str],
    potstill: Potstill,
) -> None:
    make("data.jsonl")
    write_recipe("{kind: import, path: data.jsonl, rows: chats}")
    assert mistake() == f"t.yaml:3: 's.path' names 'data.jsonl', which is {what}{rest}"
    remove("data.jsonl")
    Path("data.jsonl").write_bytes(GOOD_LINE)
    assert potstill("run", "t.yaml") == (0, "")
    make("other.yaml")
    assert potstill("run", "other.yaml") == (
        2,
        f"other.yaml: this is {what}, not a recipe. Name the YAML file itself.\n",
    )


# ---- the command line and the recipe

OVERRIDES = {
    "s.limit": "command line, s.limit: not of the form key.path=value. Write for example dpo.beta=0.05.",
    "=3": "command line, =3: not of the form key.path=value. Write for example dpo.beta=0.05.",
    "s..limit=3": "command line, s..limit=3: not of the form key.path=value. Write for example dpo.beta=0.05.",
    "s.limit=[1": "command line, s.limit=[1: not valid YAML: while parsing a flow sequence expected ',' or ']', but "
    "got '<stream end>'. Mend the value, and put quotes around it where the shell needs them.",
    "s.limit=many": "command line, s.limit=many: 's.limit' is 'many': input should be a valid integer",
    "s.limt=3": "command line, s.limt=3: unknown key 's.limt' (did you mean 'limit'?). The keys here are: ",
    "t.limit=3": "command line, t.limit=3: the recipe has nothing named 't'",
    "s.limit=true": "command line, s.limit=true: 's.limit' is true or false: input should be a number. Mend the value.",
    "s.limit=100000000000000000000": "command line, s.limit=100000000000000000000: '100000000000000000000' is no int "
    "of up to 64 bits. Mend the value.",
    "s.skip=9e12": "command line, s.skip=9e12: 's.skip' is 9000000000000.0: input should be less than or equal to "
    "1000000000000. Mend the value.",
    "s.limit=0": "command line, s.limit=0: 's.limit' is 0: input should be greater than or equal to 1. Mend the value.",
}


BOUNDS = {
    "converse, teacher: m, prompts: p.jsonl": (
        "turns=[1, 1000000]",
        "'s.turns' is a list: turns must be [fewest, most] with 1 <=",
    ),
    "sft, model: m, data: p.jsonl": ("epochs=.inf", "'s.epochs' is inf: input should be a finite number"),
    "pretrain, data: p.jsonl": ("epochs=1e300", "'s.epochs' is 1e+300: input should be less than or equal to 1000000"),
    "pretrain, data: p.jsonl, held_out: 1": (
        "evaluations=10000000",
        "'s.evaluations' is 10000000: input should be less",
    ),
    "pretrain, data: p.jsonl, layers: 2": ("layers=4000000000", "'s.layers' is 4000000000: input should be less than"),
}


@pytest.mark.parametrize("stage", BOUNDS)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_numbers_beyond_all_bounds(stage: str, verb: str, potstill: Potstill) -> None:
    override, expected = BOUNDS[stage]
    write_recipe(f"{{kind: {stage}}}", "{endpoint: 'http://localhost:1/v1', name: m, timeout_seconds: 5}")
    code, err = potstill(verb, "t.yaml", f"s.{override}")
    assert code == 2
    assert one_line(err, Path("runs/t")).startswith(f"command line, s.{override}: ")
    assert expected in err
    code, err = potstill(verb, "t.yaml", "m.timeout_seconds=.inf")
    assert (code, "'m.timeout_seconds' is inf: input should be a finite number" in err) == (2, True)


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_that_is_malformed(override: str, mistake: Callable[..., str]) -> None:
    Path("data.jsonl").write_bytes(GOOD_LINE)
    write_recipe("{kind: import, path: data.jsonl, rows: chats}")
    assert mistake(override).startswith(OVERRIDES[override])
    assert not Path("runs").exists(), "found before anything was made"


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; so these tests are nobody for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may use, since pytest's own are the user's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(folder)


def test_what_may_not_be_read(common: Path, potstill: Potstill) -> None:
    with as_nobody():
        if not os.access(__file__, os.R_OK, effective_ids=True) or not os.access(sys.executable, os.X_OK):
            pytest.skip("the user nobody cannot reach this clone, and could not import what the command needs")
    (common / "shut").mkdir()
    (common / "shut" / "t.yaml").write_text(IMPORT)
    (common / "t.yaml").write_text(IMPORT.replace("data.jsonl", "shut/data.jsonl"))
    (common / "shut" / "data.jsonl").write_bytes(GOOD_LINE)
    (common / "model").mkdir()
    (common / "model" / "config.json").write_text("{}")

    def refused(*arguments: str) -> str:
        with as_nobody():
            code, err = potstill(*arguments)
        assert code == 2
        return one_line(err, common / "runs" / "t")

    (common / "shut").chmod(0)
    reached = "the recipe cannot be reached: permission denied. Mend the path or its permissions."
    assert refused("run", "shut/t.yaml") == f"shut/t.yaml: {reached}"
    assert refused("plan", "t.yaml") == (
        "t.yaml:3: 'shut/data.jsonl' cannot be reached: permission denied. Mend the path or its permissions."
    )
    (common / "shut").chmod(0o755)
    (common / "shut" / "t.yaml").chmod(0)
    expected = "shut/t.yaml: the recipe cannot be read: permission denied. Mend its permissions."
    assert refused("run", "shut/t.yaml") == expected
    data = (common / "shut" / "data.jsonl").resolve()
    data.chmod(0)
    expected = f"{data}: the file cannot be read: permission denied. Mend its permissions."
    assert refused("run", "t.yaml") == expected
    assert refused("plan", "t.yaml") == expected
    data.chmod(0o644)
    with as_nobody():
        assert potstill("run", "t.yaml") == (0, "")


# ---- folders and disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk with such options, anew at each call."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(options: str) -> Path:
        subprocess.run(["umount", str(path)], capture_output=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True)
        if done.returncode:
            pytest.skip("only root can mount a small disk")
        return path

    yield mount
    subprocess.run(["umount", str(path)], capture_output=True)


def grow(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw,size=40m", str(path)], check=True)


def test_an_output_folder_that_cannot_be_written(
    disk: Callable[[str], Path], mistake: Callable[..., str], potstill: Potstill
) -> None:
    Path("data.jsonl").write_bytes(GOOD_LINE)
    write_recipe("{kind: import, path: data.jsonl, rows: chats}")
    out = disk("ro") / "out"
    expected = f"{out}: this folder cannot be written. Choose another with --out or mend its permissions."
    assert mistake("--out", str(out), out=str(out)) == expected
    grow(out.parent)
    assert potstill("run", "t.yaml", "--out", str(out)) == (0, "")


def test_a_disk_that_is_full_at_any_point_of_a_data_stage(
    disk: Callable[[str], Path], mistake: Callable[..., str], potstill: Potstill
) -> None:
    """In the stage's rows, in the manifest that seals them, in what is noted around them."""
    Path("data.jsonl").write_bytes(GOOD_LINE * 100)
    write_recipe("{kind: import, path: data.jsonl, rows: chats}")
    full = set()
    for pages in range(1, 30):
        out = disk(f"size={4 * pages}k") / "out"
        code, err = potstill("run", "t.yaml", "--out", str(out))
        if code == 0:
            break
        assert code == 2
        where, _, said = err.partition(": ")
        assert said == "the disk is full. Free some space and run again; what is sealed stays.\n"
        assert not list((out / "work").glob("*"))
        for folder in (out / "artifacts").glob("*"):  # sealed, and then there was no room to note how long it took
            artifact = find(folder)
            assert artifact is not None
            assert artifact.damaged() is None
        full.add(Path(where).name)
        grow(out.parent)
        assert potstill("run", "t.yaml", "--out", str(out)) == (0, "")
    assert code == 0
    assert {"rows.jsonl", MANIFEST} <= full


def test_a_disk_that_is_full_while_replies_are_kept(
    disk: Callable[[str], Path], mistake: Callable[..., str], potstill: Potstill
) -> None:
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"What is {i}?"}) + "\n" for i in range(100)))
    with Stub(lambda body: "many words " * 50) as server:
        stage = "{kind: converse, teacher: m, prompts: prompts.jsonl, turns: [1, 1]}"
        write_recipe(stage, f"{{endpoint: '{server.base_url}', name: m}}")
        out = disk("size=200k") / "out"
        journal = (
            f"{out}/journal.sqlite: the journal of replies cannot be used: database or disk is full. "
            "Free some space or mend the folder's permissions and run again; replies that are in it stay."
        )
        # Replies are kept in groups, so that rows may be the first for which there is no room.
        full = "the disk is full. Free some space and run again; what is sealed stays."
        rows = f"{out / 'work' / 's' / 'draft' / 'rows.jsonl'}: {full}"
        assert mistake("--out", str(out), out=str(out)) in (journal, rows)
        grow(out.parent)
        asked = server.answered.total()
        assert potstill("run", "t.yaml", "--out", str(out)) == (0, "")
        assert server.answered.total() < asked + 100, "replies that were kept are not paid for again"


TRAIN = (
    "kind: pretrain, data: texts.txt, vocabulary: 300, layers: 2, width: 64, heads: 2, context: 64, block_length: 32"
)


def in_process_of_its_own(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "potstill.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_disk_that_is_full_while_a_model_is_saved(disk: Callable[[str], Path]) -> None:
    Path("texts.txt").write_text("hello there\n" * 40)
    write_recipe(f"{{{TRAIN}, batch_tokens: 64}}")
    out = disk("size=100k") / "out"
    code, err = in_process_of_its_own("run", "t.yaml", "--out", str(out))
    assert code == 2
    line = one_line(err, out)
    assert line == f"{out / 'work/s/draft'}: the disk is full. Free some space and run again; what is sealed stays."
    grow(out.parent)
    assert in_process_of_its_own("run", "t.yaml", "--out", str(out)) == (0, "")


# ---- models that cannot do what is asked of them: before anything is paid for

NEEDS_WEIGHTS = "needs a model's weights, but '{}' is behind an endpoint. Name a model that has a path, or a stage that"
MISFITS = {
    "{kind: sft, model: one, data: chats.jsonl}": "'s.model' " + NEEDS_WEIGHTS.format("one"),
    "{kind: dpo, model: one, data: pairs.jsonl}": "'s.model' " + NEEDS_WEIGHTS.format("one"),
    "{kind: curate, data: chats.jsonl, meaning: {model: one}}": "'s.meaning.model' " + NEEDS_WEIGHTS.format("one"),
    "{kind: evaluate, models: [base], suites: {p: {protocol: preference, pairs: pairs.jsonl, reference: one}}}": (
        "'s.suites.p.reference' " + NEEDS_WEIGHTS.format("one")
    ),
    "{kind: evaluate, models: [base, one], suites: {p: {protocol: answer_loss, chats: chats.jsonl}}}": (
        "'s.models': suite 'p' is of protocol answer_loss, which needs log-probabilities, and 'one' is behind an"
    ),
    "{kind: converse, teacher: pool, prompts: chats.jsonl}": (
        "'s.teacher' takes one model, but 'pool' is a pool of 2. Give the one you mean a name of its own under"
    ),
    "{kind: sample, models: pool, prompts: chats.jsonl, per_prompt: 3}": (
        "'s.models': per_prompt is 3, but there are 2 models to draw from. Add models, or lower per_prompt."
    ),
    "{kind: sample, models: pool, prompts: chats.jsonl, per_prompt: 2, temperatures: {x: 1.0}}": (
        "'s.temperatures': no model is named 'x'; there are a, b. Mend the name."
    ),
    "{kind: magpie, teacher: one, count: 1}": (
        "'s.teacher': 'one' is an endpoint, whose chat template is not at hand: 'opening' is missing. Give what its"
    ),
}


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize("stage", MISFITS)
def test_models_that_do_not_fit_their_stage(stage: str, verb: str, potstill: Potstill) -> None:
    Path("chats.jsonl").write_bytes(chat(("user", "a"), ("assistant", "b")))
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    url = "endpoint: 'http://localhost:1/v1'"
    models = (
        f"  base: {{path: some/model}}\n  one: {{{url}, name: m}}\n  pool: [{{{url}, name: a}}, {{{url}, name: b}}]\n"
    )
    Path("t.yaml").write_text(f"name: t\nmodels:\n{models}stages:\n  s: {stage}\n")
    code, err = potstill(verb, "t.yaml")
    assert code == 2
    assert one_line(err, Path("runs/t")).startswith(f"t.yaml:7: {MISFITS[stage]}")


# ---- teachers and judges

CONVERSE = "{kind: converse, teacher: m, prompts: prompts.jsonl, turns: [1, 1]}"


def endpoint(url: str, **fields: str) -> str:
    return json.dumps({"endpoint": url, "name": "m", **fields})


def write_answers() -> None:
    prompt = {"id": "r", "messages": [{"role": "user", "content": "q"}]}
    candidates = [{"model": "a", "text": "x"}, {"model": "b", "text": "y"}]
    Path("answers.jsonl").write_text(json.dumps({"id": "r", "prompt": prompt, "candidates": candidates}) + "\n")


def write_prompts(count: int = 2) -> None:
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"What is it, {i}?"}) + "\n" for i in range(count)))


KEPT = "Its replies are kept: give a model that was mended under its old name a revision of its own."


def rates(body: dict[str, Any]) -> str:
    """A judge that keeps to the form."""
    if "[[grade]]" in body["messages"][-1]["content"]:
        return "It is well. Rating: [[7]]"
    return "\n\n".join(f"Text {n}\nRating: {n + 2}\nRationale: so." for n in (1, 2))


def test_a_judge_that_answers_rubbish(mistake: Callable[..., str], potstill: Potstill) -> None:
    write_answers()
    with Stub(lambda body: "I like\nboth.") as server:
        write_recipe("{kind: judge, judge: m, data: answers.jsonl}", endpoint(server.base_url))
        assert mistake() == (
            "m: only 0% of 8 ratings could be read; expected 50%. The first that could not: 'I like both.'. "
            f"Use a judge that keeps to the form, or lower min_coverage. {KEPT}"
        )
        server.answer = rates
        assert potstill("run", "t.yaml", "models.m.revision=mended") == (0, "")


def test_an_examiner_that_answers_rubbish(mistake: Callable[..., str], potstill: Potstill) -> None:
    write_prompts()
    suites = "{chat: {protocol: mt_bench, questions: prompts.jsonl}}"
    with Stub(lambda body: "fine") as server:
        write_recipe(f"{{kind: evaluate, models: [m], judge: m, suites: {suites}}}", endpoint(server.base_url))
        assert mistake() == (
            "judge m: none of its 2 judgments could be read (the judgment holds no grade of the form [[x]]); the first"
            ": 'fine'. Use a judge that keeps to the asked format, or give its replies more room with "
            "judge_max_tokens. " + KEPT
        )
        server.answer = rates
        assert potstill("run", "t.yaml", "models.m.revision=mended") == (0, "")


def test_a_teacher_that_answers_rubbish(mistake: Callable[..., str], potstill: Potstill) -> None:
    write_prompts(6)
    with Stub(lambda body: "") as server:
        write_recipe(CONVERSE, endpoint(server.base_url))
        expected = f"m: no dialogue could be held (the answer is empty). Use another teacher. {KEPT}"
        assert mistake() == expected
        server.answer = lambda body: "half \ud83d"
        assert potstill("run", "t.yaml", "models.m.revision=mended") == (0, "")
        assert (
            json.loads(Path("runs/t/s/rows.jsonl").read_text().splitlines()[0])["messages"][1]["content"]
            == "half \ufffd"
        )
        server.answer = lambda body: "I would rather not."
        write_recipe("{kind: self_instruct, teacher: m, seeds: prompts.jsonl, count: 8}", endpoint(server.base_url))
        shutil.rmtree("runs/t/artifacts")
        line = mistake()
        assert line == f"m: none of 10 replies held a task to keep (10 unread). Use another teacher. {KEPT}"


def test_a_server_that_is_not_there(mistake: Callable[..., str], potstill: Potstill) -> None:
    write_prompts()
    with Stub() as server:
        pass
    write_recipe(CONVERSE, endpoint(server.base_url))
    line = mistake()
    assert line.startswith(f"m ({server.base_url}): no server answers at {server.base_url} (")
    assert line.endswith("). Start it or correct the endpoint, and run again; replies that came are kept.")
    with Stub(port=server.port):
        assert potstill("run", "t.yaml") == (0, "")


def test_an_endpoint_with_a_wrong_key(
    mistake: Callable[..., str], potstill: Potstill, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def guarded(stub: Stub, body: dict[str, Any], before: int) -> Response | None:
        right = stub.headers[-1].get("authorization") == "Bearer right"
        return None if right else refusal(401, "Incorrect API key provided.")

    write_prompts()
    with Stub(fault=guarded) as server:
        write_recipe(CONVERSE, endpoint(server.base_url))
        says = f"m ({server.base_url}): the server says HTTP 401: Incorrect API key provided. "
        assert mistake() == says + "Name the environment variable that holds the API key as the model's key_env."
        write_recipe(CONVERSE, endpoint(server.base_url, key_env="POT_KEY"))
        assert mistake() == (
            "t.yaml:5: 's' needs the model 'm', whose key is in $POT_KEY, which is not set. "
            "Set it first: export POT_KEY=YOUR-KEY."
        )
        monkeypatch.setenv("POT_KEY", "wrong")
        assert mistake() == says + "Check the key in POT_KEY and what it may be used for."
        for odd in ("right\r", "right\n", "rıght"):
            monkeypatch.setenv("POT_KEY", odd)
            assert mistake() == (
                "t.yaml:5: 's' needs the model 'm', whose key is in $POT_KEY, which holds a line break or another sign "
                "that no key has. Set it first: export POT_KEY=YOUR-KEY."
            )
        write_recipe(CONVERSE, endpoint(server.base_url, key_env=""))
        assert mistake().startswith("t.yaml:3: 'm.key_env' is ''")
        write_recipe(CONVERSE, endpoint(server.base_url, key_env="POT_KEY"))
        monkeypatch.setenv("POT_KEY", "right")
        assert potstill("run", "t.yaml") == (0, "")


URLS = {
    "http://localhost:abc/v1": "this is no URL (Port could not be cast to integer value as 'abc')",
    "http://localhost:99999/v1": "this is no URL (Port out of range 0-65535)",
    "http://[::1/v1": "this is no URL (Invalid IPv6 URL)",
    "http://": "the URL names no host",
    "https://:443/v1": "the URL names no host",
    "http://local\nhost/v1": "the URL holds a space, a line break or the like",
    "http://localhost /v1": "the URL holds a space, a line break or the like",
    "http://user:secret@localhost/v1": "the URL holds a name or password; a key is read from the variable that key_env "
    "names",
}


@pytest.mark.parametrize("url", URLS)
def test_an_endpoint_that_is_no_url(url: str, mistake: Callable[..., str], potstill: Potstill) -> None:
    write_prompts()
    write_recipe(CONVERSE, endpoint(url))
    expected = f"t.yaml:3: m.endpoint: {URLS[url]}. Write a URL such as http://localhost:8000/v1."
    assert mistake() == expected
    with Stub() as server:
        write_recipe(CONVERSE, endpoint(server.base_url))
        assert potstill("run", "t.yaml") == (0, "")


REFUSED = {
    CONVERSE: ("m: no dialogue could be held (HTTP 400: not so)", lambda body: "It is a pot."),
    "{kind: self_instruct, teacher: m, seeds: prompts.jsonl, count: 2, from_seeds: 2, round_size: 1}": (
        "m: none of 10 replies held a task to keep (10 reply_error; the first: HTTP 400: not so)",
        lambda body: "Task 5: Mend the old kettle\nTask 6: Describe some other thing",
    ),
    "{kind: sample, models: [m, n], prompts: prompts.jsonl, per_prompt: 2}": (
        "models: no prompt got two usable answers (0 of 2 usable. m: HTTP 400: not so; n: HTTP 400: not so)",
        lambda body: "It is a pot.",
    ),
    "{kind: judge, judge: m, data: answers.jsonl}": (
        "m: only 0% of 8 ratings could be read; expected 50%. The first that could not: 'HTTP 400: not so'",
        rates,
    ),
    "{kind: evaluate, models: [n], judge: m, suites: {chat: {protocol: mt_bench, questions: prompts.jsonl}}}": (
        "judge m: none of its 2 judgments could be read (HTTP 400: not so); the first: ''",
        rates,
    ),
}


@pytest.mark.parametrize("stage", REFUSED)
def test_a_server_that_refuses_what_it_is_asked(stage: str, mistake: Callable[..., str], potstill: Potstill) -> None:
    """Nothing came, so nothing is kept: the same command goes on, without a revision."""

    async def strict(stub: Stub, body: dict[str, Any], before: int) -> Response | None:
        judges = "evaluate" not in stage or "[[grade]]" in body["messages"][-1]["content"]
        return refusal(400, "not so") if judges else None

    says, answer = REFUSED[stage]
    write_prompts()
    write_answers()
    with Stub(answer, strict) as server:
        write_recipe(stage, endpoint(server.base_url) + f"\n  n: {endpoint(server.base_url, name='n')}")
        advice = "See to the server and to what it is asked for, and run again; replies that came are kept."
        assert mistake() == f"{says}. {advice}"
        server.fault = None
        assert potstill("run", "t.yaml") == (0, "")


def test_a_simulated_user_whose_turns_are_cut(mistake: Callable[..., str], potstill: Potstill) -> None:
    async def cut(stub: Stub, body: dict[str, Any], before: int) -> Response | None:
        return reply(completion("And", "length")) if body["max_tokens"] == 9 else None

    write_prompts()
    with Stub(fault=cut) as server:
        stage = "{kind: converse, teacher: m, user: n, prompts: prompts.jsonl, turns: [2, 2], user_max_tokens: 9}"
        write_recipe(stage, endpoint(server.base_url) + f"\n  n: {endpoint(server.base_url, name='n')}")
        assert mistake() == (
            "n: no dialogue could be held (the answer was cut at max_tokens). "
            f"Use another user, or raise user_max_tokens. {KEPT}"
        )
        assert potstill("run", "t.yaml", "s.user_max_tokens=99") == (0, "")


def test_a_server_of_the_recipe_that_is_killed(
    mistake: Callable[..., str], potstill: Potstill, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = MiniatureProcess.__enter__

    def start_and_kill(process: MiniatureProcess) -> MiniatureProcess:
        start(process)
        process._process.kill()
        return process

    write_prompts()
    write_recipe(CONVERSE, "{endpoint: w, name: scribe}\nservers:\n  w: {kind: miniature}")
    with monkeypatch.context() as patch:
        patch.setattr(MiniatureProcess, "__enter__", start_and_kill)
        line = mistake()
    assert line.startswith("m (http://127.0.0.1:")
    assert line.endswith(
        "): the recipe's own server 'w' has ended. Read runs/t/logs/w.log and run again; replies that came are kept."
    )
    assert Path("runs/t/logs/w.log").is_file()
    assert potstill("run", "t.yaml") == (0, "")


# ---- models


def test_a_folder_that_holds_no_model(mistake: Callable[..., str], potstill: Potstill) -> None:
    write_prompts()
    Path("folder").mkdir()
    write_recipe(CONVERSE, "{path: folder}")
    expected = "t.yaml:3: 'folder' holds no model: there is no config.json in it. Name a folder in Hugging Face layout."
    assert mistake() == expected
    write_recipe(CONVERSE, "{path: ./nowhere}")
    assert mistake() == "t.yaml:3: there is no folder './nowhere'. Mend the path."
    Path("folder/config.json").write_text('{"model_type": "mist')
    write_recipe(CONVERSE, "{path: folder}")
    line = mistake()
    assert line.startswith(f"model m: its tokenizer cannot be loaded from {Path('folder').resolve()}: ")
    assert line.endswith("Give a folder in Hugging Face layout with safetensors weights, or a name on the Hub.")


def make_model(path: Path, template: bool) -> None:
    from engine import tiny_tokenizer
    from transformers import MistralConfig, MistralForCausalLM

    from potstill.training.models import save_model

    tokenizer = tiny_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, sliding_window=None, pad_token_id=0,
    )  # fmt: skip
    save_model(MistralForCausalLM(config), tokenizer, path)
    if not template:
        file = path / "tokenizer_config.json"
        told = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in told.items() if k not in ("chat_template", "eos_token")}))


def test_a_model_without_a_chat_template_or_the_means_for_one(mistake: Callable[..., str], potstill: Potstill) -> None:
    write_prompts()
    make_model(Path("folder"), template=False)
    write_recipe("{kind: converse, teacher: m, prompts: prompts.jsonl, turns: [1, 1], max_tokens: 8}", "{path: folder}")
    assert mistake() == (
        f"{Path('folder').resolve()}: its tokenizer has neither a chat template nor an end token. "
        "Set eos_token in its tokenizer_config.json."
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (1, "(not finished after 4 tokens). Use another teacher, or raise max_tokens."),
        (200, " tokens and the model reads 128). Use another teacher."),
    ],
)
def test_a_model_whose_answers_never_end(
    words: int, says: str, mistake: Callable[..., str], potstill: Potstill
) -> None:
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "What? " * words}) + "\n")
    make_model(Path("folder"), template=True)
    write_recipe("{kind: converse, teacher: m, prompts: prompts.jsonl, turns: [1, 1], max_tokens: 4}", "{path: folder}")
    line = mistake()
    assert line.startswith("m: no dialogue could be held (")
    assert line.endswith(says)


def test_more_held_out_than_there_is() -> None:
    Path("texts.txt").write_text("hello there\n" * 5)
    write_recipe(f"{{{TRAIN}, held_out: 50}}")
    code, err = in_process_of_its_own("run", "t.yaml")
    assert code == 2
    line = one_line(err, Path("runs/t"))
    assert line == (
        "texts.txt: holding out 50 of 5 rows leaves nothing to train on. Lower held_out, or give more rows."
    )


def test_a_world_too_small_for_its_prompts(mistake: Callable[..., str], potstill: Potstill) -> None:
    Path("t.yaml").write_text(
        "name: t\nservers:\n  w: {kind: miniature, entities: 40}\n"
        "stages:\n  s: {kind: miniature, server: w, part: questions, per_category: 20}\n"
    )
    assert mistake() == (
        "a world of 40 entities: it has 12 different held-out prompts of the category 'writing'; expected 20. "
        "Lower the stage's per_category, or raise the server's entities."
    )
    assert potstill("run", "t.yaml", "servers.w.entities=100") == (0, "")
