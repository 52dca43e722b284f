"""The report: what is sealed, what the summary holds, and that a hostile model cannot reach the page."""

import io
import json
import math
import re
import subprocess
import sys

import pytest
from evaluation_fakes import endpoint, inputs, local, work
from pages import Page
from rich.console import Console

from potstill.artifact import read_json, seal, write_json
from potstill.errors import RecipeError
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.statistics import Observation
from potstill.reporting import charts, render
from potstill.reporting.curves import CURVE_POINTS
from potstill.reporting.differences import in_seeds, only_against, without
from potstill.reporting.findings import findings, noted
from potstill.sources import Data
from potstill.stages import report
from potstill.terminal import show

MODELS = ["base", "sft", "dpo"]
CATEGORIES = ["writing", "math", "stem", "coding"]
HOSTILE = [
    "<script>alert(1)</script>",
    "{{7*7}} {% raw %} ${7*7}",
    "</style></svg></details><img src=x onerror=alert(1)>",
    "\"'><a href='https://evil.example' onclick=\"x()\">",
    "&lt;b&gt; javascript:alert(1) <!-- ]]> --> \x00\x1b[31m\u202e",
]
TIMINGS = {"sft": {"seconds": 61.0, "sealed_before": False}, "dpo": {"seconds": 0.0, "sealed_before": True}}


def suite(means, protocol="mt_bench", scale=(1.0, 10.0), higher=True, count=12):
    """A suite in which every model has that mean, give or take."""
    observed = {
        name: [
            Observation(f"q{i}", "1", mean + 0.3 * math.sin(i * (1 + j)), category=CATEGORIES[i % 4])
            for i in range(count)
        ]
        for j, (name, mean) in enumerate(means.items())
    }
    return SuiteResult(Measure(protocol, scale, higher, unit="points"), observed).to_json()


def answers(texts=("fine",), suite="chat", models=MODELS, count=12):
    return [
        {
            "suite": suite,
            "model": model,
            "id": f"q{i}",
            "category": CATEGORIES[i % 4],
            "turns": [{"user": f"Question {i}?", "assistant": texts[i % len(texts)], "score": 5.0, "judgment": "so"}],
        }
        for model in models
        for i in range(count)
    ]


def scores(folder, name, suites, lines=(), models=MODELS):
    path = folder / name
    path.mkdir(parents=True)
    write_json(path / "scores.json", {"models": list(models), "suites": suites})
    (path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Data(name, "scores", path)


def made(folder, name, kind, config, steps=3):
    """A sealed model with its curves."""
    draft = folder / f"draft-{name}"
    draft.mkdir(parents=True)
    lines = [{"step": s, "split": "train", "loss": 3.0 - s / steps, "note": "x"} for s in range(1, steps + 1)]
    lines.append({"step": steps, "split": "held_out", "loss": 2.5, "reward_accuracy": 0.75})
    (draft / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = {
        "stage": name, "kind": kind, "version": 1, "produces": "model", "key": name, "seed": 1, "inputs": {},
        "config": {"kind": kind, **config}, "facts": {"steps": steps, "dropped": {"too_long": 1200}},
    }  # fmt: skip
    sealed = seal(draft, folder / "artifacts" / name, manifest)
    return local(name, str(sealed.path))


def sealed_report(folder, given, models=(), seed=1, named=(), **changes):
    config = report.Report.model_validate({"kind": "report", "scores": ["scores"], "models": named, **changes})
    job = work(folder / "report", seed)
    report.run(config, inputs({"scores": tuple(given)}, {"models": tuple(models)}), job)
    return job.path


@pytest.fixture
def usual(tmp_path):
    """A report of three models, with curves and answers."""
    suites = {
        "chat": suite({"base": 3.0, "sft": 6.0, "dpo": 7.0}),
        "a/honesty": suite({"base": 2.0, "sft": 4.0, "dpo": 3.0}, "aspects", (1.0, 5.0)),
        "loss": suite({"base": 3.0, "sft": 2.0, "dpo": 2.0}, "answer_loss", (0.0, None), higher=False),
    }
    models = [
        made(tmp_path, "base", "pretrain", {"layers": 4}),
        made(tmp_path, "sft", "sft", {"data": "raw", "epochs": 2}),
        made(tmp_path, "dpo", "sft", {"data": "curated", "epochs": 2}, steps=1000),
    ]
    return sealed_report(tmp_path, [scores(tmp_path, "scores", suites, answers())], models)


def page(folder, out):
    out.mkdir(parents=True, exist_ok=True)
    render(folder, TIMINGS, out)
    return (out / "report.html").read_text(encoding="utf-8")


def test_what_is_sealed(usual):
    sealed = read_json(usual / "report.json")
    assert sealed["models"] == MODELS
    assert sealed["curves"]["base"]["train"]["loss"] == [[1, 3 - 1 / 3], [2, 3 - 2 / 3], [3, 2.0]]
    assert sealed["curves"]["base"]["held_out"] == {"loss": [[3, 2.5]], "reward_accuracy": [[3, 0.75]]}
    thinned = sealed["curves"]["dpo"]["train"]["loss"]
    assert (len(thinned), thinned[-1][0]) == (CURVE_POINTS, 1000)
    assert math.fsum(v for _, v in thinned) / len(thinned) == pytest.approx(2.4995, abs=1e-3)
    assert sealed["controlled"] == [{"earlier": "sft", "later": "dpo", "field": "data", "settings": ["raw", "curated"]}]


def test_ten_answers_across_the_categories_by_seed(usual, tmp_path):
    shown = read_json(usual / "report.json")["answers"]
    assert len(shown) == 10
    assert [sum(q["category"] == c for q in shown) >= 2 for c in CATEGORIES] == [True] * 4
    assert list(shown[0]["turns"][0]["answers"]) == MODELS
    given = [scores(tmp_path / "again", "scores", {"chat": suite({"base": 1.0, "sft": 2.0})}, answers())]
    ids = [
        [
            q["id"]
            for q in read_json(sealed_report(tmp_path / str(i), given, seed=s, answers=3) / "report.json")["answers"]
        ]
        for i, s in enumerate([1, 1, 2])
    ]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 3


def test_suites_of_the_same_name_are_told_apart(tmp_path):
    given = [scores(tmp_path, name, {"chat": suite({"base": 1.0 + i})}) for i, name in enumerate(["one", "two"])]
    assert list(read_json(sealed_report(tmp_path, given) / "report.json")["suites"]) == ["one: chat", "two: chat"]


def test_judgments_that_could_not_be_read_are_counted_and_shown(tmp_path):
    lines = answers()
    for line in lines[:7]:
        line["turns"][0] |= {"score": None, "reason": "no grade", "judgment": f"{HOSTILE[0]} I cannot say."}
    lines[8]["turns"][0] |= {"score": None, "reason": "no answer: error", "assistant": "", "judgment": ""}
    given = [scores(tmp_path, "scores", {"chat": suite({"base": 3.0, "sft": 4.0})}, lines)]
    text = page(sealed_report(tmp_path, given), tmp_path / "out")
    assert "7 judgments of 35 could not be read and have no part in any mean (base on chat: 7)." in text
    assert text.count("I cannot say.") - sum("I cannot say." in part for part in text.split("<details")[1:]) == 5
    assert HOSTILE[0] not in text
    out = io.StringIO()
    show._print_failed(Console(file=out, width=160), given[0].path, "scores[seed=1]")
    assert "7 judgments of 35" in out.getvalue()
    assert out.getvalue().count("I cannot say.") == 5
    assert "potstill run RECIPE scores.ask_again=1" in out.getvalue()
    whole = [scores(tmp_path, "whole", {"chat": suite({"base": 3.0, "sft": 4.0})}, answers())]
    assert "could not be read" not in page(sealed_report(tmp_path / "whole-report", whole), tmp_path / "out")


def test_models_from_elsewhere_have_no_curves(tmp_path):
    given = [scores(tmp_path, "scores", {"chat": suite({"base": 3.0, "sft": 4.0})})]
    folder = sealed_report(tmp_path, given, [endpoint("base"), local("sft", str(tmp_path / "elsewhere"))])
    assert read_json(folder / "report.json")["curves"] == {}
    assert "potstill chat" not in page(folder, tmp_path / "out")


def test_the_summary(usual, tmp_path):
    page(usual, tmp_path / "out")
    found = read_json(tmp_path / "out" / "summary.json")
    assert found["models"] == MODELS
    for name in ("chat", "a/honesty", "loss"):
        for model in MODELS:
            estimate = found["scores"][name][model]
            assert set(estimate) == {"mean", "low", "high", "n", "coverage"}
            assert estimate["low"] < estimate["mean"] < estimate["high"]
        assert set(found["paired"][name]) == {"sft-base", "dpo-base", "dpo-sft"}
        assert {"mean", "low", "high"} <= set(found["paired"][name]["dpo-sft"])
    assert found["paired"]["chat"]["dpo-sft"]["mean"] == pytest.approx(1.0, abs=0.3)
    assert found["stages"] == TIMINGS
    assert found["headline"][0].startswith("dpo does better than sft on chat: ")


def test_rendering_twice_gives_the_same_page(usual, tmp_path):
    assert page(usual, tmp_path / "out") == page(usual, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "summary.json"]


@pytest.mark.parametrize(
    ("later", "higher", "opening"),
    [
        (7.0, True, "dpo does better than sft on s: "),
        (5.0, True, "dpo does worse than sft on s: "),
        (6.02, True, "Whether dpo does better or worse than sft on s cannot be told: "),
        (5.0, False, "dpo does better than sft on s: "),
        (7.0, False, "dpo does worse than sft on s: "),
    ],
)
def test_the_headline_says_no_more_than_the_interval(later, higher, opening):
    found = findings({"models": ["sft", "dpo"], "suites": {"s": suite({"sft": 6.0, "dpo": later}, higher=higher)}})
    assert found[0].text.startswith(opening)
    assert "95% interval" in found[0].text


def test_a_small_difference_does_not_look_like_none():
    given = suite({"sft": 5.14, "dpo": 5.14}, "answer_loss", (0.0, None), higher=False)
    given["paired"]["dpo-sft"] |= {"mean": 0.0021, "low": 0.0008, "high": 0.0034, "p_adjusted": 0.01}
    text = findings({"models": ["sft", "dpo"], "suites": {"loss": given}})[0].text
    assert text.startswith("dpo does worse than sft on loss: 5.1")
    assert text.endswith("a difference of +0.002 (95% interval +0.001 to +0.003, n 12).")


def test_few_questions_make_no_claim_however_alike():
    observed = {
        name: [Observation(f"q{i}", "1", mean) for i in range(2)] for name, mean in (("sft", 1.0), ("dpo", 9.0))
    }
    given = SuiteResult(Measure("mt_bench", (1.0, 10.0), unit="points"), observed).to_json()
    found = findings({"models": ["sft", "dpo"], "suites": {"s": given}})[0]
    assert found.verdict == "unclear"
    assert found.text.endswith(" 2 questions are too few to tell.")


def test_what_was_hardly_scored_makes_no_claim():
    """Of 40 questions 12 could be scored, all of them higher."""
    rows = {"sft": [5.0 + i % 3 for i in range(40)], "dpo": [8.0 + i % 2 if i < 12 else None for i in range(40)]}
    observed = {name: [Observation(f"q{i}", "1", one) for i, one in enumerate(found)] for name, found in rows.items()}
    given = SuiteResult(Measure("mt_bench", (1.0, 10.0), unit="points"), observed).to_json()
    found = findings({"models": ["sft", "dpo"], "suites": {"s": given}})[0]
    assert found.verdict == "unclear"
    assert found.text.endswith(" Only 30% of one side could be scored.")


def test_one_question_makes_no_claim():
    found = findings({"models": ["sft", "dpo"], "suites": {"s": suite({"sft": 1.0, "dpo": 9.0}, count=1)}})
    assert found[0].verdict == "unclear"
    assert found[0].text.count("(no interval: one question") == 3, "of both means and of their difference"


def test_verdicts_are_corrected_for_all_comparisons_of_a_suite():
    """Three models make three comparisons; what is clear alone may not be so among them."""
    given = suite({"base": 5.0, "sft": 6.0, "dpo": 6.02})
    assert given["paired"]["dpo-sft"]["comparisons"] == 3
    known = given["paired"]["dpo-sft"] | {"mean": 0.2, "low": 0.01, "high": 0.4, "p": 0.04, "p_adjusted": 0.12}
    given["paired"]["dpo-sft"] = known
    (finding, *_) = findings({"models": ["base", "sft", "dpo"], "suites": {"s": given}})
    assert finding.verdict == "unclear"
    assert finding.text.endswith("(95% interval +0.01 to +0.40, n 12), corrected for 3 comparisons (Holm).")
    given["paired"]["dpo-sft"] = {**known, "p_adjusted": 0.04}
    assert findings({"models": ["base", "sft", "dpo"], "suites": {"s": given}})[0].verdict == "better"


def test_against_one_only_its_comparisons_count():
    given = only_against(suite({"base": 5.0, "sft": 6.0, "dpo": 6.1, "kto": 6.3}), "base")
    meant = {name: one for name, one in given["paired"].items() if name.endswith("-base")}
    assert {one["comparisons"] for one in meant.values()} == {3}
    assert given["paired"]["kto-dpo"]["comparisons"] == 6
    lowest = min(meant.values(), key=lambda one: one["p"])
    assert lowest["p_adjusted"] == pytest.approx(3 * lowest["p"])


def test_a_teacher_is_no_rival_of_its_students():
    """What they keep of its score is told elsewhere; what they are among themselves is corrected for those alone."""
    given = without(suite({"tutor": 8.0, "base": 5.0, "sft": 6.0, "dpo": 6.1}), "tutor")
    assert {given["paired"][name]["comparisons"] for name in ("sft-base", "dpo-base", "dpo-sft")} == {3}
    asked = {"models": ["base", "sft", "dpo", "tutor"], "suites": {"chat": given}}
    assert {name for one in findings(asked) for name in (one.later, one.earlier)} == {"base", "sft", "dpo", "tutor"}
    found = findings({**asked, "footprint": {"teacher": "tutor"}})
    assert [(one.later, one.earlier) for one in found] == [("dpo", "sft"), ("sft", "base")]


def test_one_seed_is_not_said_to_be_one_of_one():
    assert in_seeds({"mean": 1.0, "members": {"0": 1.0}}) == ""
    assert in_seeds({"mean": 1.0, "members": {"0": 1.0, "1": -0.5, "2": 3.0}}) == "2 of 3 seeds"


def test_low_coverage_is_said_in_the_sentence():
    one = suite({"sft": 1.0, "dpo": 9.0})
    one["models"]["sft"]["coverage"] = 0.25
    assert findings({"models": ["sft", "dpo"], "suites": {"s": one}})[0].text.endswith("Only 25% could be scored.")


def hostile_page(tmp_path):
    """Every name and text of a report that somebody else chose, chosen badly."""
    models = [f"m{i}{text}" for i, text in enumerate(HOSTILE[:3])]
    named = suite(dict.fromkeys(models, 5.0))
    named["categories"] = {HOSTILE[3] + c: by for c, by in named["categories"].items()}
    lines = answers(HOSTILE, suite=HOSTILE[2], models=models)
    for line in lines:
        line["turns"][0]["user"] = line["category"] = HOSTILE[3]
        line["turns"][0]["reason"] = HOSTILE[0]
    given = [
        scores(
            tmp_path, "scores", {HOSTILE[2]: named, f"a/{HOSTILE[0]}": named | {"protocol": "aspects"}}, lines, models
        )
    ]
    folder = sealed_report(tmp_path, given, [made(tmp_path, "x", "sft", {})], title=HOSTILE[1])
    sealed = read_json(folder / "report.json")
    sealed["curves"] = {models[0]: {HOSTILE[0]: {"loss": [[1, 2.0], [2, 1.0]]}}}
    sealed["stages"] = {HOSTILE[3]: {"kind": "sft", "facts": {HOSTILE[0]: HOSTILE[2]}}}
    sealed["controlled"] = [{"earlier": models[0], "later": models[1], "field": HOSTILE[0], "settings": HOSTILE[2:4]}]
    write_json(folder / "report.json", sealed)
    out = tmp_path / "out"
    out.mkdir()
    render(folder, {HOSTILE[2]: {"seconds": 1.0, "sealed_before": True}}, out)
    return (out / "report.html").read_text(encoding="utf-8")


def test_a_hostile_text_stays_a_text(usual, tmp_path):
    harmless = Page(page(usual, tmp_path / "usual"))
    found = Page(hostile_page(tmp_path / "hostile"))
    assert set(found.tags) <= set(harmless.tags)
    assert {(tag, name) for tag, name, _ in found.attributes} <= {(tag, name) for tag, name, _ in harmless.attributes}
    assert found.tags.count("style") == 1
    for text in HOSTILE[:4]:
        assert text in found.text
    assert not re.search("[\x00\x1b\u202e]", found.text)


@pytest.mark.parametrize("which", ["usual", "hostile"])
def test_the_page_asks_nobody_for_anything(usual, tmp_path, which):
    text = page(usual, tmp_path / "out") if which == "usual" else hostile_page(tmp_path / "hostile")
    found = Page(text)
    assert not {"script", "iframe", "object", "embed", "form", "base", "img", "image", "use"} & set(found.tags)
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "srcset", "xlink:href", "action", "data", "poster", "style"):
            assert value.startswith("#") or value == "data:,", (tag, name, value)
    style = text.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"@import|url\(|@font-face|expression", style)
    policy = dict(a[1:] for a in found.attributes if a[0] == "meta" and a[1] == "content" and "default" in a[2])
    assert policy["content"].startswith("default-src 'none'; style-src 'sha256-")


def test_the_policy_allows_the_style_that_is_there(usual, tmp_path):
    import base64
    import hashlib

    text = page(usual, tmp_path / "out")
    style = text.split("<style>")[1].split("</style>")[0]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in text


def test_the_page_tells_how_to_use_the_last_model(usual, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = Page(page(usual, tmp_path / "runs" / "my run")).text
    assert "potstill chat 'runs/my run' dpo" in text
    assert 'model="runs/my run/dpo"' in text
    assert "61 s" not in text
    assert "1 min 01 s" in text
    assert "sealed by an earlier run" in text
    assert "dropped: too long1,200" in text


def test_a_report_without_answers_curves_or_a_second_model(tmp_path):
    given = [scores(tmp_path, "scores", {"s": suite({"only": 5.0}, count=1)}, models=["only"])]
    text = Page(page(sealed_report(tmp_path, given), tmp_path / "out")).text
    assert "only on s\n5.00 (no interval: one question, n 1) out of 10." in text


def test_whom_a_suite_compares_with_is_said():
    """And where length alone explains preferences: of the one model there is, and below the table."""
    wins = {**suite({"sage": 0.9}, "alpaca_eval", (0.0, 1.0), count=30), "unit": "share won"}
    notes = {"wins": {"baseline": "gold", "length_controlled": {"explained_by": "length alone"}}}
    suites = {name: noted(wins, name, notes) for name in ("wins", "wins/length_controlled", "other")}
    told = [finding.text for finding in findings({"models": ["sage"], "suites": suites})]
    assert told[0].startswith("sage on wins, against gold: 9")
    assert told[0].endswith(" won.")
    assert "against gold, at equal length, as far as length alone can explain preferences: " in told[1]
    assert told[2].startswith("sage on other: ")


def test_means_over_other_questions_are_told_from_the_difference():
    """Two models that each lack some: the difference is of what both have, which the sentence says."""
    given = suite({"base": 5.0, "sft": 6.0})
    given["paired"]["sft-base"] |= {"n": 9}
    (finding,) = findings({"models": ["base", "sft"], "suites": {"s": given}})
    assert "each of what it has a value for; of what both have, a difference of +1" in finding.text


def test_drawing_needs_no_torch(usual, tmp_path):
    program = (
        "import sys; from pathlib import Path; from potstill.reporting import render; "
        f"render(Path({str(usual)!r}), {{}}, Path({str(tmp_path)!r})); "
        "print([m for m in ('torch', 'transformers', 'openai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 5, 10]), (0.1, 0.69, [0.2, 0.4, 0.6]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (3, 3, [3])],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high, 4) == pytest.approx(expected)


def test_an_interval_is_drawn_to_scale():
    strip = str(charts.interval(5.0, 4.0, 6.0, (0.0, 10.0), "c1"))
    assert 'x1="40.40%" x2="59.60%"' in strip
    assert 'cx="50.00%"' in strip
    assert "whisker" not in charts.interval(5.0, None, None, (0.0, 10.0), "c1")


def test_a_radar_puts_values_on_their_axes():
    drawn = str(charts.radar(["n", "e", "s", "w"], {"m": [10.0, 5.0, 0.0, 0.0]}, (0.0, 10.0), {"m": "c0"}))
    assert 'points="260.0,37.0 344.0,205.0 260.0,205.0 260.0,205.0"' in drawn


SEEDS = {"text": (4.0, 4.4, 4.5), "logits": (5.0, 4.3, 5.1)}
TOOK = {f"{name}[seed={seed}]": {"seconds": 10.0 + seed, "sealed_before": False} for name in SEEDS for seed in range(3)}


@pytest.fixture
def families(tmp_path):
    """Two families of three seeds each beside a plain model, scored on two suites, made of rows and of a capture."""
    draft = tmp_path / "rows"
    draft.mkdir()
    (draft / "rows.jsonl").write_text("x" * 5_000)
    whole = {"kind": "x", "version": 1, "seed": 0, "config": {}, "inputs": {}, "facts": {}}
    chats = {**whole, "stage": "chats", "produces": "chats", "key": "c" * 64}
    seal(draft, tmp_path / "artifacts" / f"chats-{'c' * 12}", chats)
    (tmp_path / "signals" / "signals").mkdir(parents=True)
    (tmp_path / "signals" / "signals" / "0.shard").write_text("x" * 20_000)
    said = {**whole, "stage": "said", "produces": "signals", "key": "d" * 64}
    seal(tmp_path / "signals", tmp_path / "artifacts" / f"said-{'d' * 12}", said)
    models = [made(tmp_path, "base", "pretrain", {"layers": 4})]
    for name, fields in (("text", ["data"]), ("logits", ["data", "teacher"])):
        for seed in range(3):
            member, folder = f"{name}[seed={seed}]", tmp_path / f"draft-{name}-{seed}"
            folder.mkdir()
            lines = [{"step": s, "split": "train", "loss": s + seed} for s in (1, 2)]
            (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            sources = {"data": [{"name": "chats", "key": "c" * 64}], "teacher": [{"name": "said", "key": "d" * 64}]}
            manifest = {
                "stage": name, "kind": name, "version": 1, "produces": "model", "key": member, "seed": seed,
                "inputs": {field: sources[field] for field in fields}, "config": {"kind": name, "epochs": 3},
                "facts": {"steps": 84, "learnt_tokens": 1000},
            }  # fmt: skip
            sealed = seal(folder, tmp_path / "artifacts" / f"{name}-{seed}", manifest)
            models.append(local(member, str(sealed.path)))
    names = {
        "base": 3.0,
        **{f"{name}[seed={i}]": mean for name, means in SEEDS.items() for i, mean in enumerate(means)},
    }
    suites = {
        "chat": suite(names),
        "loss": suite({name: 9 - mean for name, mean in names.items()}, "answer_loss", (0.0, None), higher=False),
    }
    given = [scores(tmp_path, "scores", suites, answers(models=list(names)), list(names))]
    return given, models


def family_page(families, tmp_path, **changes):
    given, models = families
    folder = sealed_report(tmp_path / "report", given, models, named=["base", "text", "logits"], **changes)
    out = tmp_path / "out"
    out.mkdir()
    render(folder, TOOK, out)
    return read_json(out / "summary.json"), (out / "report.html").read_text(encoding="utf-8")


def test_members_that_differ_in_their_seed_alone_are_one_row(families, tmp_path):
    found, text = family_page(families, tmp_path)
    assert found["models"] == ["base", "text", "logits"]
    assert found["members"]["text"] == ["text[seed=0]", "text[seed=1]", "text[seed=2]"]
    chat = found["scores"]["chat"]
    members = chat["logits"]["members"]
    assert list(members) == [f"logits[seed={seed}]" for seed in range(3)]
    assert chat["logits"]["mean"] == pytest.approx(math.fsum(members.values()) / 3)
    assert chat["logits"]["n"] == 12  # questions, not answers
    assert chat["logits"]["low"] < chat["logits"]["mean"] < chat["logits"]["high"]
    paired = found["paired"]["chat"]["logits-text"]
    assert paired["mean"] == pytest.approx(math.fsum(paired["members"].values()) / 3)
    assert [one > 0 for one in paired["members"].values()] == [True, False, True]
    assert "side_by_side" not in found
    assert "Side by side" not in text
    assert "of this sign in 2 of 3 seeds" in found["headline"][0]
    assert text.count("<summary>What text[seed=") == 1
    assert "text (seed 0, 1, 2)" in text


def test_everything_stands_against_one_in_a_table_with_what_it_took(families, tmp_path):
    found, text = family_page(families, tmp_path, against="text")
    rows = {row["name"]: row for row in found["side_by_side"]}
    assert list(rows) == ["base", "text", "logits"]
    assert (rows["logits"]["seconds"], rows["logits"]["steps"], rows["logits"]["seeds"]) == (11.0, 84, ["0", "1", "2"])
    assert (rows["text"]["signal_bytes"], rows["text"]["bytes_per_token"]) == (5_000, 5.0)
    assert (rows["logits"]["signal_bytes"], rows["logits"]["bytes_per_token"]) == (25_000, 25.0)
    assert rows["logits"]["learnt_tokens"] == 3_000
    assert rows["text"]["suites"]["chat"]["difference"] is None
    straight, turned = (rows[name]["suites"]["chat"]["difference"] for name in ("logits", "base"))
    assert straight == found["paired"]["chat"]["logits-text"]
    known = found["paired"]["chat"]["text-base"]
    assert (turned["mean"], turned["low"], turned["high"]) == (-known["mean"], -known["high"], -known["low"])
    assert found["headline"][0].startswith("Of 2 set against text on chat, 0 better and 1 worse: ")
    assert [line.split(":")[0] for line in found["headline"][1:3]] == [
        "base does worse than text on chat", "Whether logits does better or worse than text on chat cannot be told",
    ]  # fmt: skip
    assert "Side by side, against text" in text
    assert "2 of 3 seeds" in text
    assert "seeds 0, 1, 2" in text


def test_a_curve_of_a_family_is_the_mean_and_answers_are_of_one_member(families, tmp_path):
    _, text = family_page(families, tmp_path)
    assert text.count('aria-label="text: loss"') == 1
    assert "<b>text[seed=0]</b>" in text
    assert "text[seed=1]</b>" not in text


def test_against_has_to_be_one_of_the_models():
    with pytest.raises(ValueError, match="against names 'sft', which is none of models"):
        report.Report.model_validate({"kind": "report", "scores": ["s"], "models": ["dpo"], "against": "sft"})


CLAIMS = [
    {"better": "text", "worse": "base", "suite": "chat"},
    {"better": "base", "worse": "text", "suite": "loss"},
    {"better": "logits", "worse": "text", "suite": "chat"},
    {"better": "base", "worse": "text", "suite": "chat"},
]
PUBLISHED = {"source": "A paper, Table 3", "scores": {"text": {"chat": 7.0}, "base": {"chat": [4.76, 0.5]}}}


def test_orderings_that_were_named_before_are_told_one_by_one(families, tmp_path):
    found, text = family_page(families, tmp_path, claims=CLAIMS, published=PUBLISHED)
    told = found["claims"]
    # The third differs by its seeds' spread alone, and of a loss less is better.
    assert [one["outcome"] for one in told] == ["holds", "opposite", "cannot tell", "opposite"]
    assert told[0]["published"] == {"better": 7.0, "worse": [4.76, 0.5], "source": "A paper, Table 3"}
    assert told[1]["published"] is None
    assert told[0]["difference"] == found["paired"]["chat"]["text-base"]
    alone = [found["paired"]["chat"][name]["p"] for name in ("text-base", "logits-text")]
    assert told[2]["p_adjusted"] == alone[1]  # the largest of the four
    assert told[0]["p_adjusted"] > alone[0]
    assert len(found["headline"]) == 5
    assert found["headline"][0].startswith("Of 4 orderings that were looked for, 1 hold")
    assert "published: 7.00 against 4.76 (standard error 0.50)" in found["headline"][1]
    assert "Beside what was published" in text
    assert '<td class="figure">4.76 (standard error 0.50)</td>' in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"claims": [{"better": "sft", "worse": "dpo", "suite": "chat"}]}, "claims.0 names 'sft'"),
        ({"published": {"source": "x", "scores": {"sft": {"chat": 7}}}}, "published.scores names 'sft'"),
        ({"published": {"source": "x", "scores": {"dpo": {"chat": [1, 2, 3]}}}}, "at most 2|valid number"),
        ({"published": {"source": "x", "scores": {"dpo": {"chat": [1, -0.1]}}}}, "greater than or equal to 0"),
        ({"published": {"source": "x", "scores": {"dpo": {"chat": 1e308}}}}, "less than or equal to 1000000"),
        ({"claims": [{"better": "dpo", "worse": "dpo", "suite": "chat"}]}, "claims.0 sets 'dpo' against itself"),
    ],
)
def test_what_is_claimed_is_of_the_models(changes, words):
    with pytest.raises(ValueError, match=words):
        report.Report.model_validate({"kind": "report", "scores": ["s"], "models": ["dpo"], **changes})


def test_a_claim_about_a_suite_that_is_not_there_is_refused(families, tmp_path):
    claim = {"better": "text", "worse": "base", "suite": "chta"}
    with pytest.raises(RecipeError, match=r"claims.0: 'chta' is a suite that none .* \(did you mean 'chat'\?\)"):
        family_page(families, tmp_path, claims=[claim])


def test_a_published_score_off_its_scale_is_refused(families, tmp_path):
    published = {"source": "x", "scores": {"text": {"chat": 85.65}}}
    with pytest.raises(RecipeError, match=r"published.scores.text.chat: 85.65 is off the scale .* expected 1 to 10"):
        family_page(families, tmp_path, published=published)
