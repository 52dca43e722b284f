"""The command line: what each verb prints, what it returns, and how quickly it answers."""

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import fakes
import pytest
from rich.console import Console

from potstill import __version__
from potstill.artifact import Artifact
from potstill.cli import main
from potstill.errors import ModelError
from potstill.reporting import tables
from potstill.reporting.told import Form, told_difference
from potstill.runs import events
from potstill.speakers import NearSpeaker
from potstill.terminal import console
from potstill.terminal.chat import Options, Talk
from potstill.terminal.show import sparkline

SCRIPT = str(Path(sys.executable).with_name("potstill"))


@pytest.fixture(autouse=True)
def _fake_stages(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("tiny.yaml").write_text(fakes.RECIPE)


@pytest.fixture
def potstill(capsys):
    """Run one command here; its exit code, output and errors."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_help_answers_in_a_blink():
    took = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([SCRIPT, "--help"], check=True, capture_output=True)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.3


def test_help_names_every_verb_and_version_says_itself():
    shown = subprocess.run([SCRIPT, "--help"], check=True, capture_output=True, text=True).stdout
    assert all(re.search(rf"^ +{verb} ", shown, re.MULTILINE) for verb in ("run", "plan", "status", "show", "chat"))
    assert (
        subprocess.run([SCRIPT, "--version"], check=True, capture_output=True, text=True).stdout.split()[-1]
        == __version__
    )


@pytest.mark.parametrize("verb", [["run", "tiny.yaml"], ["plan", "tiny.yaml"], ["status", "tiny.yaml"]])
def test_a_run_with_nothing_to_do_takes_no_second_and_imports_no_torch(verb, potstill):
    assert potstill("run", "tiny.yaml")[0] == 0
    program = (
        "import sys, fakes; from potstill import stages; stages.MODULES.update(fakes.MODULES)\n"
        "from potstill.cli import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'openai', 'numpy'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, *verb], capture_output=True, text=True)
    assert time.perf_counter() - began < 2  # a second of our own, with room for a busy machine
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_run_says_what_it_does_in_calm_lines(potstill):
    code, out, err = potstill("run", "tiny.yaml")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "tiny in runs/tiny: 6 of 6 stages to run"
    assert lines[1] == "[1/6] first: starts"
    assert re.fullmatch(r"\[1/6\] first: sealed in 0\.\d s, 4 texts", lines[2])
    assert re.fullmatch(r"\[3/6\] loud: sealed in .* s, 4 texts, 1 left out \(1 hoarse\)", lines[6])
    assert lines[-2:] == ["Talk to it  potstill chat runs/tiny other", "See it all  potstill view runs/tiny"]
    assert "\x1b" not in out
    code, out, err = potstill("run", "tiny.yaml", "other.heat=3")
    assert "tiny in runs/tiny: 1 of 6 stages to run" in out
    assert "[1/6] first: sealed before, 4 texts" in out


def test_run_until_a_stage(potstill):
    code, out, _ = potstill("run", "tiny.yaml", "--until", "loud", "--out", "elsewhere")
    assert code == 0
    assert out.startswith("tiny in elsewhere: 2 of 2 stages to run")
    assert "4 of 6 stages are left" in potstill("status", "elsewhere")[1]
    code, _, err = potstill("run", "tiny.yaml", "--until", "lout")
    assert code == 2
    assert err.startswith("command line, --until: the recipe has no stage 'lout' (did you mean 'loud'?). Name one of")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rn", "tiny.yaml"], "potstill: no verb is called 'rn' (did you mean 'run'?); expected one of: run, plan,"),
        (["a\nb"], "potstill: no verb is called 'a\\nb'; expected one of: run, "),
        ([], "potstill: the following arguments are required: VERB. See: potstill --help"),
    ],
)
def test_a_verb_that_is_none_is_told_in_one_line(potstill, capsys, words, says):
    with pytest.raises(SystemExit) as caught:
        potstill(*words)
    error = capsys.readouterr().err
    assert (caught.value.code, error.count("\n")) == (2, 1)
    assert error.startswith(says)


def test_no_columns_are_as_many_as_a_terminal_has(potstill, monkeypatch):
    potstill("run", "tiny.yaml")
    monkeypatch.setenv("COLUMNS", "0")
    assert "first" in potstill("status", "tiny")[1]


def test_help_is_a_word_too(potstill, capsys):
    shown = []
    for words in (["help", "logs"], ["logs", "--help"]):
        with pytest.raises(SystemExit) as caught:
            potstill(*words)
        assert caught.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


def test_overrides_stand_before_and_after_options(potstill, capsys):
    code, out, _ = potstill("plan", "tiny.yaml", "first.count=5", "--until", "second", "second.count=7", "--out", "x")
    assert code == 0
    assert "~7" in out
    for arguments in (["plan", "tiny.yaml", "--outt", "x"], ["status", "tiny.yaml", "first.count=5"]):
        with pytest.raises(SystemExit) as caught:
            potstill(*arguments)
        assert caught.value.code == 2
        assert re.fullmatch(
            r"potstill( \w+)?: unrecognized arguments: .*\. See: potstill( \w+)? --help\n", capsys.readouterr().err
        )


def test_a_mistake_is_one_line_and_exit_code_2(potstill):
    code, out, err = potstill("run", "tiny.yaml", "loud.marc=x")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("command line, loud.marc=x: unknown key 'loud.marc' (did you mean 'mark'?).")
    assert not Path("runs").exists()


def test_a_bug_is_a_traceback_and_no_exit_code_that_says_anything_of_models(potstill, monkeypatch):
    def broken(*arguments):
        raise RecursionError("a bug")

    monkeypatch.setattr("potstill.scoring.compare.compare", broken)
    code, _, err = potstill("compare", "a", "b", "--require", "x > 0")
    assert code == 70
    assert err.startswith("Traceback")
    assert "RecursionError: a bug" in err


def test_plan_says_what_would_run_why_and_what_it_takes(potstill):
    Path("tiny.yaml").write_text(fakes.RECIPE.replace("name: scribe-1", "name: scribe-1, price: {input: 1, output: 5}"))
    code, out, _ = potstill("plan", "tiny.yaml")
    assert code == 0
    assert not Path("runs").exists()
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["first"] == ["first", "words", "will", "run", "new", "~4", "~8", "~10"]
    assert rows["loud"] == ["loud", "shout", "will", "run", "new", "~4"]  # what `first` is expected to make
    assert "6 of 6 stages would run in runs/tiny; about 14 calls of teachers and judges" in out
    assert "Guesses, marked ~: first, second" in out
    assert "a trial tells better: potstill plan ... --trial 50." in out
    potstill("run", "tiny.yaml", "--until", "loud")
    out = potstill("plan", "tiny.yaml", "second.text=x", "loud.mark=x")[1]
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["first"] == ["first", "words", "sealed", "4"]
    assert rows["loud"] == ["loud", "shout", "will", "run", "mark", "changed", "~4"]


def test_plan_tells_the_price(potstill):
    from potstill.sources import EndpointModel, Model, Price
    from potstill.stages.base import Expected
    from potstill.terminal.views import _usd

    class Step:
        pass

    step, link = Step(), Step()
    step.entry, step.expected = Step(), Expected(tokens=2_000_000)
    link.models = (Model("m", EndpointModel(endpoint="http://x", name="m", price=Price(input=1, output=5))),)
    step.entry.links = (link,)
    assert _usd(step) == (6.0, 10.0), "a guess: half of the tokens may be prompts, or none"
    step.expected = Expected(tokens=2_000_000, tokens_range=(1_000_000, 3_000_000), prompt_share=0.75)
    assert _usd(step) == (2.0, 6.0)


def test_status_tells_what_is_sealed_and_what_is_left(potstill):
    code, _, err = potstill("status", "tiny.yaml")
    assert (code, err.strip()) == (2, "runs/tiny: nothing has run here. Run it first: potstill run tiny.yaml.")
    assert potstill("run", "tiny.yaml", "other.fail=known")[0] == 2
    code, out, _ = potstill("status", "tiny.yaml")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert re.search(r"sealed +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d +\d+\.\d s +4 texts", rows["first"])
    assert "not yet" in rows["asked"]
    assert "2 of 6 stages are left. Go on with:\n  potstill run tiny.yaml other.fail=known\n" in out
    assert potstill("run", "tiny.yaml", "other.fail=known", "--until", "other")[0] == 2
    assert "potstill run tiny.yaml other.fail=known --until other\n" in potstill("status", "tiny.yaml")[1]
    assert potstill("run", "tiny.yaml")[0] == 0
    assert "All 6 stages are sealed in runs/tiny." in potstill("status", "runs/tiny")[1]


def test_status_folds_what_is_too_long_for_a_narrow_terminal(potstill, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    potstill("run", "tiny.yaml")
    head, *lines = potstill("status", "tiny.yaml")[1].split("\n\n")[0].splitlines()
    assert head.split() == ["stage", "kind", "took"]
    begin = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert begin == ["first", "second", "loud", "made", "other", "asked"]
    assert all(len(line) <= 60 for line in lines)
    assert "…" not in "".join(lines)
    assert "1 left out (1 hoarse)" in " ".join("".join(line[30:]).strip() for line in lines)


def test_show_prints_the_manifest_and_the_first_rows(potstill):
    potstill("run", "tiny.yaml")
    code, out, _ = potstill("show", "runs/tiny", "loud", "--rows", "2")
    assert code == 0
    assert "loud (shout, makes texts)" in out
    assert re.search(r"data +first \([0-9a-f]{12}\)", out)
    assert 'mark: "!"' in out
    assert "every file is as it was sealed" in out
    assert "POT 1" in out
    assert "POT 2" not in out
    assert "hoarse" in potstill("show", "tiny.yaml", "loud", "--dropped")[1]
    assert "POT 2" in potstill("show", "runs/tiny", "loud", "--rows", "99999999999999999999")[1]
    assert "0 of 4 rows; --rows 4 shows them all" in potstill("show", "runs/tiny", "loud", "--rows", "0")[1]
    code, _, err = potstill("show", "runs/tiny", "lout")
    assert (code, "did you mean 'loud'" in err) == (2, True)


def test_show_of_a_model_counts_its_parameters_and_draws_its_curve(potstill):
    potstill("run", "tiny.yaml")
    out = potstill("show", "runs/tiny", "made")[1]
    assert re.search(r"architecture +Anvil", out)
    assert re.search(r"parameters +6 *\n", out)
    assert re.search(r"train +█\S*▁  at step 39: loss 0.025", out)
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0, 1.0]) == "▁▁"


def test_show_notices_a_byte_that_changed(potstill):
    potstill("run", "tiny.yaml")
    rows = Path("runs/tiny/first/rows.jsonl")
    rows.write_text(rows.read_text().replace("pot 1", "pet 1"))
    code, _, err = potstill("show", "runs/tiny", "first")
    assert code == 2
    assert "rows.jsonl: its bytes are not those that were sealed. Remove the folder" in err


def test_show_writes_every_kind_of_row_readably(tmp_path):
    from potstill.records import Answers, Candidate, Chat, Message, Pair, Prompt, Rating
    from potstill.terminal.show import row_view

    asked, said, bad = (
        Message(role="user", content="What is a pot still?\x1b[31m"),
        Message(role="assistant", content="A vessel. " * 400, train=False),
        Message(role="assistant", content="No idea"),
    )
    ratings = (Rating(aspect="honesty", score=4.0, rationale="says what it knows"), Rating(aspect="truth", score=None))
    prompt = Prompt(id="p1", messages=(asked,), follow_ups=("And then?",), references=("A vessel",), category="stem")
    candidate = Candidate(model="scribe", text="Cut", finish="length", reason="too long", ratings=ratings)
    out = io.StringIO()
    screen = Console(file=out, width=100)
    for row in (
        Chat(id="c1", messages=(asked, said), category="stem"),
        prompt,
        Answers(id="a1", prompt=prompt, candidates=(candidate,)),
        Pair(id="r1", prompt=(asked,), chosen=(said,), rejected=(bad,), chosen_score=8, rejected_score=1.5),
    ):
        screen.print(row_view(row))
    text = out.getvalue()
    assert "\x1b" not in text
    for part in (
        "c1  stem", "assistant (not learnt)", "2,500 characters more", "And then?", "reference", "scribe",
        "length: too long", "honesty 4  says what it knows", "truth N/A", "chosen, 8", "rejected, 1.5", "No idea",
    ):  # fmt: skip
        assert part in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_what_a_judge_did_not_give_is_shown_as_what_it_was():
    """N/A is what a judge said; what could not be read, or contradicted itself, nobody said to be N/A."""
    from potstill.records import Answers, Candidate, Message, Prompt, Rating
    from potstill.terminal.show import row_view

    told = {
        "a": "N/A: a poem",
        "b": "unread: no rating for text 1",
        "c": "inconsistent: 5 of 5, but called poor. Good.",
    }
    ratings = tuple(
        Rating(aspect=name, score=None, rationale=why, judge="j" * (name == "b")) for name, why in told.items()
    )
    row = Answers(
        id="a1",
        prompt=Prompt(id="p1", messages=(Message(role="user", content="Hello"),)),
        candidates=(Candidate(model="scribe", text="Hi", ratings=ratings),),
    )
    out = io.StringIO()
    Console(file=out, width=100).print(row_view(row))
    assert [line.strip() for line in out.getvalue().splitlines()][-4:-1] == [
        "a N/A  a poem",
        "b unread by j  no rating for text 1",
        "c inconsistent  5 of 5, but called poor. Good.",
    ]


# Bars.


def test_on_a_terminal_bars_move_and_finished_lines_stay(tmp_path):
    """A real pseudo-terminal: what is seen at the end holds one line a stage, and no bar."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fakes", "run", "tiny.yaml", "loud.seconds=1.5"],
        stdin=child, stdout=child, stderr=child, env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while piece := os.read(parent, 65536):
            shown += piece
    os.close(parent)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"loud +\d\.\d s  ━+.* \d+/20 shouts +\d+\.\d/s +\d\.\d s left +loudness \d", text)
    assert re.search(r"!  made +the iron is cold", text)
    assert re.search(r"✓  loud +1\.\d s  4 texts, 1 left out \(1 hoarse\)", text)


def test_pace_tells_rate_and_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    pace = events.Pace()
    pace.update(0, 100, "steps", {})
    now[0] = 10.0
    pace.update(20, 100, "steps", {"loss": 2.5})
    words = console.progress_words(pace.fields())
    assert words == {"count": "20/100 steps", "rate": "2.0/s", "left": "40 s left", "figures": "loss 2.5"}
    pace.update(1, 30, "rows", {})  # another phase counts anew
    now[0] = 20.0
    pace.update(3, 30, "rows", {})
    assert console.progress_words(pace.fields())["rate"] == "5.0 s each"
    pace.update(7, 0, "rows", {})  # nobody knows of how many
    assert console.progress_words(pace.fields())["count"] == "7 rows"


def estimate(mean, low, high, n=80, **more):
    return {"mean": mean, "low": low, "high": high, "n": n, "coverage": 1.0, **more}


def gain(mean, low, high, p=0.01):
    return {"mean": mean, "low": low, "high": high, "n": 80, "p": p, "p_adjusted": p, "comparisons": 1}


SUMMARY = {
    "models": ["sft", "dpo"],
    "scores": {
        "chat": {"sft": estimate(5.0, 4.5, 5.5), "dpo": estimate(6.25, 6.0, 6.5)},
        "held/loss": {"sft": estimate(0.5, 0.48, 0.52, 70, coverage=0.875), "dpo": estimate(0.25, None, None, 1)},
        "held/wins": {"sft": estimate(None, None, None, 0)},
    },
    "paired": {"chat": {"dpo-sft": gain(1.25, 0.5, 2.0)}},
    "measures": {name: {"share": False, "unit": "points"} for name in ("chat", "held/loss", "held/wins")},
}


def table_at(width):
    out = io.StringIO()
    Console(file=out, width=width).print(tables.score_table(SUMMARY, width))
    return [re.split(r"  +", line.strip()) for line in out.getvalue().splitlines()]


def test_the_table_of_scores_shows_means_intervals_and_what_has_none():
    assert table_at(120) == [
        ["mean", "sft", "dpo", "dpo − sft", "n"],
        ["chat", "5.00 [4.50, 5.50]", "6.25 [6.00, 6.50]", "+1.25 [+0.50, +2.00]", "80"],
        ["held"],
        ["loss", "0.500 [0.480, 0.520] n 70, 88% scored", "0.250 [one question]", "-", "1–70"],
        ["wins", "-", "-", "-", "0"],
    ]


def test_the_table_of_scores_fits_a_narrow_terminal():
    rows = table_at(50)
    assert rows[:3] == [["mean", "sft", "dpo", "n"], ["chat", "5.00", "6.25", "80"], ["[4.50, 5.50]", "[6.00, 6.50]"]]


@pytest.mark.parametrize("width", [44, 60, 80, 120])
def test_no_number_of_a_table_is_cut(width):
    """Shares of 100% with wide intervals, five long names, six suites: every figure stands whole on one line."""
    models = ["teacher", "mistral-orpo-capybara", "sft_raw", "sft", "dpo"]
    suites = ["chat", "wins", "wins/length_controlled", *(f"aspects/{name}_following" for name in "abc")]
    share = {"share": True, "unit": "share won", "baseline": "gold", "explained_by": "length alone"}
    summary = {
        "models": models,
        "scores": {suite: {name: estimate(1.0, 0.954, 1.0, 1234) for name in models} for suite in suites},
        "paired": {},
        "measures": dict.fromkeys(suites, share),
    }
    out = io.StringIO()
    Console(file=out, width=width).print(tables.score_table(summary, width))
    text = out.getvalue()
    assert 2 * text.count("[95.4%, 100.0%]") == text.count("100.0%") == 2 * len(models) * len(suites)
    assert "…" not in text
    assert "wins: against gold" in text


def test_a_difference_that_rounds_to_nothing_has_no_sign_and_one_that_does_not_is_seen():
    form = Form(2)
    assert [form(-0.001), Form(2, signed=True)(-0.0), Form(1, percent=True, signed=True)(1e-9)] == [
        "0.00",
        "0.00",
        "0.0",
    ]
    assert "−0.004 " in str(told_difference(gain(-0.004, -0.011, 0.003), form))
    assert not re.search(r"[−+]0\.0+(?!\d)", str(told_difference(gain(-1e-9, -1e-8, 1e-8), form)))


def beside(name, chat, difference, seeds=("0", "1")):
    found = {**estimate(chat, chat - 0.5, chat + 0.5), "difference": difference}
    return {
        "name": name, "seeds": list(seeds), "suites": {"chat": found}, "seconds": 12.4, "steps": 84.0,
        "learnt_tokens": 100.0, "signal_bytes": 800.0, "bytes_per_token": 8.0,
    }  # fmt: skip


def test_everything_against_one_fits_the_terminal():
    rows = [
        beside("text", 3.0, None),
        beside("start[model=random]", 4.25, gain(1.25, 0.5, 2.0), ()),
    ]
    summary = {"side_by_side": rows, "against": "text", "measures": {"chat": {"share": False, "unit": "points"}}}
    summary["scores"] = {"chat": {row["name"]: row["suites"]["chat"] for row in rows}}

    def lines(width):
        out = io.StringIO()
        Console(file=out, width=width).print(tables.side_by_side_table(summary, width))
        return [re.split(r"  +", line.strip()) for line in out.getvalue().splitlines()]

    assert lines(120) == [
        ["mean [95% interval]", "chat", "− text", "training", "steps", "bytes/token"],
        ["text", "×2", "3.00 [2.50, 3.50] n 80", "-", "12 s", "84", "8"],
        ["start[model=random]", "4.25 [3.75, 4.75] n 80", "+1.25 [+0.50, +2.00]", "12 s", "84", "8"],
    ]
    assert lines(70) == [
        ["mean [95% interval]", "chat", "− text", "training"],
        ["text", "×2", "3.00", "-", "12 s"],
        ["[2.50, 3.50]"],
        ["n 80"],
        ["start[model=random]", "4.25", "+1.25", "12 s"],
        ["[3.75, 4.75]", "[+0.50, +2.00]"],
        ["n 80"],
    ]


def test_many_models_are_rows_not_columns():
    names = [f"m[beta={i}]" for i in range(8)]
    summary = {
        "models": names,
        "scores": {"chat": {name: estimate(1.0, None, None, 1) for name in names}},
        "paired": {},
        "measures": {"chat": {"share": False, "unit": "points"}},
    }
    out = io.StringIO()
    Console(file=out, width=80).print(tables.score_table(summary, 80))
    assert [line.split()[0] for line in out.getvalue().splitlines()[2:]] == names


def test_facts_in_few_words():
    facts = {"rows": 8120, "dropped": {"tie": 2, "hedge": 12}, "cut": 0, "mean_margin": 1.234, "keep": "best"}
    artifact = Artifact(Path("x"), {"produces": "pairs", "facts": facts})
    assert console.facts_line(artifact) == ("8,120 pairs, 14 left out (12 hedge, 2 tie), mean margin 1.23, keep best")
    facts = {"steps": 140, "kept": "step 110", "held_out_loss": {"first": 2.5, "best": 0.632, "last": 0.7}, "rows": 12}
    artifact = Artifact(Path("x"), {"produces": "model", "facts": facts})
    assert console.facts_line(artifact) == "12 rows, held-out loss 2.5 to 0.632, steps 140, kept step 110"
    own = {"rows": 1200, "tokens": 30000, "cut": 7, "empty": 0}
    facts = {"steps": 9, "own_answers": own, "rows": 12, "tokens": 500, "learnt_tokens": 90}
    artifact = Artifact(Path("x"), {"produces": "model", "facts": facts})
    says = "12 rows, 1,200 own answers, 30,000 tokens, 7 cut at max_tokens, steps 9"
    assert console.facts_line(artifact) == says, "the data's tokens are not what is learnt"
    artifact = Artifact(Path("x"), {"produces": "prompts", "facts": {"rows": 1, "opening": "<|user|>\n"}})
    assert console.facts_line(artifact) == r"1 prompts, opening <|user|>\n", "in one line"
    artifact = Artifact(Path("x"), {"produces": "ratings", "facts": {"rows": 4, "cut": 0, "coverage": 0.0}})
    assert console.facts_line(artifact) == "4 ratings, coverage 0", "a measure of 0 is a result, a count of 0 is none"


# Chat, with a teacher that repeats what it was asked.


class Echo:
    context = 1000

    def __init__(self, model):
        self.model, self.requests = model, []

    def length(self, request):
        return 1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, request):
        self.requests.append(request)
        last = request.messages[-1].content
        if last == "break":
            raise ModelError("echo", "it cannot", "Say something else")
        yield from ((f"{len(request.messages)} ", 1), (last, 2), ("\x1b", 3))


@pytest.fixture
def echo(monkeypatch):
    """The teacher that `chat` talks to, and a way to type to it."""
    import types

    teachers = []

    def make(model):
        teachers.append(Echo(model))
        return teachers[-1]

    module = types.ModuleType("potstill.teachers.local")
    module.LocalTeacher = make
    monkeypatch.setitem(sys.modules, "potstill.teachers.local", module)

    def type_in(text):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return teachers

    return type_in


def test_chat_remembers_the_conversation_and_takes_commands(echo, potstill):
    potstill("run", "tiny.yaml")
    teachers = echo("hello\nagain\n/reset\nnew\n/system be a pirate\nahoy\n/what\n/help\n/exit\nunheard\n")
    code, out, _ = potstill("chat", "runs/tiny", "--max-tokens", "7", "--temperature", "0", "--seed", "5")
    assert code == 0
    lines = out.splitlines()
    assert lines[:6] == ["1 hello", "3 again", "Forgotten.", "1 new", "It is told: be a pirate", "2 ahoy"]
    assert lines[6] == "There is no /what."
    assert "unheard" not in out
    assert "\x1b" not in out
    (teacher,) = teachers
    assert teacher.model.name == "other"  # the last model in the recipe's order
    assert Path(teacher.model.local.path).name.startswith("other-")
    first, second, *_, last = teacher.requests
    assert (first.max_tokens, first.temperature, first.top_k) == (7, 0.0, 50)
    assert first.seed != second.seed
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert (last.messages[0].role, last.messages[0].content) == ("system", "be a pirate")


def test_chat_with_a_model_by_name_or_by_folder(echo, potstill):
    potstill("run", "tiny.yaml")
    teachers = echo("hi\n")
    assert potstill("chat", "tiny.yaml", "made", "--system", "be brief")[0] == 0
    assert teachers[0].model.name == "made"
    assert teachers[0].requests[0].messages[0].content == "be brief"
    echo("hi\n")
    assert potstill("chat", "runs/tiny/made")[0] == 0
    assert Path(teachers[1].model.local.path) == Path("runs/tiny/made")


def test_chat_errors(echo, potstill):
    potstill("run", "tiny.yaml", "--until", "loud")
    echo("hi\n")
    code, _, err = potstill("chat", "runs/tiny")
    assert (code, "no model of this run is sealed yet" in err) == (2, True)
    potstill("run", "tiny.yaml", "other.fail=known")
    code, _, err = potstill("chat", "runs/tiny", "mode")
    assert (code, "this run has no model 'mode' (did you mean 'made'?)" in err) == (2, True)
    code, _, err = potstill("chat", "runs/tiny", "other")
    assert (code, "'other' is not sealed yet" in err) == (2, True)
    echo("break\n")
    code, _, err = potstill("chat", "runs/tiny", "made")
    assert (code, err.strip()) == (2, "echo: it cannot. Say something else.")


def test_on_a_terminal_a_failed_answer_is_forgotten_and_the_talk_goes_on(echo, monkeypatch, capsys):
    teachers = echo("")
    typed = iter(["break", "fine", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    Talk(NearSpeaker("m", Path("m")), Options("", 0.0, 1.0, 0, 5, 0)).run()
    assert "echo: it cannot" in capsys.readouterr().out
    assert [message.content for message in teachers[0].requests[1].messages] == ["fine"]


def test_summary_and_headline_end_the_run(tmp_path):
    from potstill.recipe import load_recipe
    from potstill.runs.plan import Plan
    from potstill.runs.workspace import Workspace

    out = io.StringIO()
    summary = {"models": ["a"], "scores": {"chat": {"a": estimate(5.0, 4.0, 6.0)}}, "paired": {},
               "measures": {"chat": {"share": False, "unit": "points"}}, "headline": ["it got better"]}  # fmt: skip
    plan = Plan(load_recipe("tiny.yaml"), {})
    console.closing(Console(file=out, width=80), plan, Workspace(Path("runs/tiny")), json.loads(json.dumps(summary)))
    assert "5.00 [4.00, 6.00]" in out.getvalue()
    assert "it got better" in out.getvalue()
    assert "Read it     runs/tiny/report.html" in out.getvalue()


def test_scores_without_a_report_are_pointed_to():
    from potstill.runs.plan import Plan
    from potstill.runs.workspace import Workspace

    made = {name: SimpleNamespace(name=name, entry=SimpleNamespace(produces="scores")) for name in ("scores", "more")}
    out = io.StringIO()
    console.closing(Console(file=out, width=80), Plan(None, made), Workspace(Path("runs/tiny")), None)
    assert out.getvalue().split("\n")[1:3] == [
        "See scores  potstill show runs/tiny scores",
        "See scores  potstill show runs/tiny more",
    ]
