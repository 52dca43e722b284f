"""Scores are compared under like terms alone: the same questions, judge, baseline and way of measuring."""

import json
from pathlib import Path

import pytest

from potstill.artifact import hash_file, seal
from potstill.cli import main
from potstill.errors import DataError
from potstill.evaluation.scores import Measure, SuiteResult, write_observations
from potstill.evaluation.statistics import Observation
from potstill.evaluation.terms import Text
from potstill.runs.workspace import Asked, Description, Workspace
from potstill.scoring.compare import compare

GRADES = Measure("mt_bench", (1.0, 10.0), unit="points")
WON = Measure("mt_bench_pairs", (0.0, 1.0), share=True, unit="share won")
N = 20
JUDGED = Path("../shared/data/mt_bench/model_judgment")


def source(name, key="", served=""):
    """An input as a manifest has it."""
    told = {"model": {"endpoint": True, "name": served, "revision": ""}} if served else {}
    return {"name": name, "key": key or f"key of {name}", **told}


def evaluation(folder, measures=None, *, world="", suites=None, stage=None, inputs=None, notes=None, models=("a", "b")):
    """A sealed evaluation of two models, b a point better, whose questions are of a world."""
    measures = measures or {"chat": GRADES}
    suites = suites or {"chat": {"protocol": "mt_bench", "questions": "questions", "judge": None}}
    draft = folder.with_name(f"{folder.name}.draft")
    draft.mkdir(parents=True)
    results, lines = {}, []
    for suite, measure in measures.items():
        values = {name: {2 * i + t: 5.0 + i % 3 + (name == "b") for i in range(N) for t in (0, 1)} for name in models}
        observations = {
            name: [
                Observation(f"q{i}", str(t + 1), found[2 * i + t] if measure is GRADES else found[2 * i + t] / 10)
                for i in range(N)
                for t in (0, 1)
            ]
            for name, found in values.items()
        }
        results[suite] = SuiteResult(measure, observations)
        base = (notes or {}).get(suite, {}).get("baseline")
        for name in (*models, *([base] if base else [])):
            for i in range(N):
                turns = [{"user": f"Tell of {i}{world}.", "assistant": f"{name}{i}"}, {"user": "And then?"}]
                turns[1]["assistant"] = "so"
                lines.append({"suite": suite, "model": name, "id": f"q{i}", "category": "", "turns": turns})
    (draft / "scores.json").write_text(
        json.dumps({"models": list(models), "suites": {name: one.to_json() for name, one in results.items()}})
    )
    write_observations(draft, results)
    (draft / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    head = {
        "stage": folder.name,
        "kind": "evaluate",
        "version": 1,
        "produces": "scores",
        "key": folder.name,
        "seed": 0,
        "config": {"suites": suites, "max_tokens": 64, "judge_max_tokens": 100, "ask_again": 0, **(stage or {})},
        "inputs": {"judge": [source("judge")], "models": [source(name) for name in models], **(inputs or {})},
        "facts": {"notes": notes or {}},
    }
    seal(draft, folder, head)
    return str(folder)


def rewrite(path, text):
    """As if it had been sealed so."""
    path.write_text(text)
    manifest = path.with_name("manifest.json")
    head = json.loads(manifest.read_text())
    head["files"][path.name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    manifest.write_text(json.dumps(head))


def refusal(*words):
    with pytest.raises(DataError) as caught:
        compare(*words)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_same_ids_for_other_questions_are_refused(tmp_path, capsys):
    one, other = evaluation(tmp_path / "one"), evaluation(tmp_path / "other", world=" of Terven")
    said = refusal(one, other)
    assert "the same ids stand for other questions: 'q0' is 'Tell of 0.' in" in said
    assert "'Tell of 0 of Terven.'" in said
    assert "20 of 20 differ. Compare two that were asked the same questions" in said
    assert main(["compare", one, other, "--require", "chat > -1"]) == 2
    assert "other questions" in capsys.readouterr().err
    assert compare(f"{one}:a", f"{one}:b", "chat > -1")["verdict"] == "holds"


def test_one_later_turn_that_differs_is_told(tmp_path):
    one, other = evaluation(tmp_path / "one"), evaluation(tmp_path / "other")
    path = Path(other) / "answers.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["turns"][1]["user"] = "And   then?" if line["id"] != "q7" else "And why?"
    rewrite(path, "".join(json.dumps(line) + "\n" for line in lines))
    said = refusal(one, other)
    assert "'q7', turn 2, is 'And then?'" in said
    assert "1 of 20 differ" in said


def test_long_texts_are_told_apart_and_cut():
    one, other = Text.of("word " * 1000), Text.of("word " * 1000 + "end")
    assert one.digest != other.digest
    assert len(one.beginning) < 200


def test_a_line_of_answers_that_cannot_be_read_is_one_line(tmp_path):
    one, other = evaluation(tmp_path / "one"), evaluation(tmp_path / "other")
    rewrite(Path(other, "answers.jsonl"), '{"suite": "chat", "turns": 3}\n')
    assert "answers.jsonl:1: this line is not as potstill writes answers" in refusal(one, other)


def test_without_texts_the_sealed_data_tell(tmp_path):
    suites = {"loss": {"protocol": "answer_loss", "chats": "held"}}
    folders = {}
    for name, key in (("one", "k1"), ("same", "k1"), ("other", "k2")):
        given = {"suites.loss.chats": [source("held", key)]}
        folders[name] = evaluation(tmp_path / name, {"loss": GRADES}, suites=suites, inputs=given)
        rewrite(Path(folders[name], "answers.jsonl"), "")
    assert compare(folders["one"], folders["same"])["suites"]["loss"]
    assert 'chats are "held" (key k1) in' in refusal(folders["one"], folders["other"])
    Path(folders["other"], "manifest.json").unlink()  # then nobody knows more than the ids
    assert compare(folders["one"], folders["other"])["suites"]["loss"]


def test_another_judge_is_refused_where_it_matters(tmp_path):
    measures = {"chat": GRADES, "right": GRADES}
    suites = {"chat": {"protocol": "mt_bench", "questions": "q", "judge": None}, "right": {"protocol": "exact"}}
    ours = {"measures": measures, "suites": suites}
    cheap = evaluation(tmp_path / "one", **ours, inputs={"judge": [source("cheap", "c", "small")]})
    strong = evaluation(tmp_path / "other", **ours, inputs={"judge": [source("strong", "s", "large")]})
    found = compare(cheap, strong)
    assert list(found["suites"]) == ["right"]
    assert "judged by 'cheap'" in found["not_compared"]["chat"]
    assert "by 'strong'" in found["not_compared"]["chat"]
    assert "Evaluate one of them again with the judge of the other" in refusal(cheap, strong, "chat > -1")
    assert compare(cheap, strong, "right > -3")["verdict"] == "holds"
    renamed = evaluation(tmp_path / "renamed", **ours, inputs={"judge": [source("frugal", "c", "small")]})
    assert list(compare(cheap, renamed)["suites"]) == ["chat", "right"]
    tuned = evaluation(tmp_path / "tuned", **ours, inputs={"judge": [source("cheap", "c2", "small")]})
    assert "judged by 'cheap' (key c), in" in refusal(cheap, tuned, "chat > -1")


def test_a_judge_that_one_side_does_not_tell_is_noted(tmp_path):
    one, other = evaluation(tmp_path / "one"), evaluation(tmp_path / "other")
    Path(other, "manifest.json").unlink()
    (note,) = compare(one, other)["notes"]
    assert note == f"chat: {other}:b does not tell who judged, so nobody knows that it was the same judge"


def duel(folder, key, name="base", **more):
    """With a baseline, which answers as it is called."""
    suite = {"protocol": "mt_bench_pairs", "questions": "q", "judge": None, "baseline": name}
    given = {"suites.versus.baseline": [source(name, key)]}
    made = {"suites": {"versus": suite}, "inputs": given, "notes": {"versus": {"baseline": name}}}
    return evaluation(folder, {"versus": WON}, **made, **more)


def test_another_baseline_is_refused_and_the_same_answers_are_the_same(tmp_path):
    one = duel(tmp_path / "one", "k1")
    assert compare(one, duel(tmp_path / "same", "k2"))["suites"]["versus"], "recorded answers of the same model"
    assert "compared with 'base', in" in refusal(one, duel(tmp_path / "other", "k3", "rival"))


def test_the_baseline_itself_has_no_row(tmp_path):
    both = {"measures": {"versus": WON, "chat": GRADES}, "models": ("base", "b")}
    suites = {"versus": {"protocol": "mt_bench_pairs", "questions": "q", "judge": None, "baseline": None}}
    suites["chat"] = {"protocol": "mt_bench", "questions": "q", "judge": None}
    path = evaluation(tmp_path / "two", **both, suites=suites, notes={"versus": {"baseline": "base"}})
    scores, seen = Path(path, "scores.json"), Path(path, "observations.jsonl")
    found = json.loads(scores.read_text())
    del found["suites"]["versus"]["models"]["base"]
    rewrite(scores, json.dumps(found))
    kept = [line for line in seen.read_text().splitlines() if '"versus", "model": "base"' not in line]
    rewrite(seen, "\n".join(kept) + "\n")
    said = refusal(f"{path}:base", f"{path}:b", "versus > 0%")
    assert f"{path}:base is the baseline of suite 'versus'" in said
    assert "name two models that are not the baseline" in said
    assert list(compare(f"{path}:base", f"{path}:b")["suites"]) == ["chat"]


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [("orders", "drawn", "both"), ("verdict", "choice", "logprob"), ("checker", "exact", "number")],
)
def test_another_way_of_measuring_is_refused(field, one, other, tmp_path):
    folders = [
        evaluation(tmp_path / value, suites={"chat": {"protocol": "p", "questions": "q", field: value}})
        for value in (one, other)
    ]
    assert f'it is measured with {field} "{one}" in' in refusal(*folders)


def test_a_file_is_what_it_holds(tmp_path):
    """Other words for the judge in a file of the same name; the same words in a file of another."""

    def asked(name, file, key):
        suite = {"protocol": "mt_bench", "questions": "q", "judge": None, "judge_prompts": file}
        given = {"suites.chat.judge_prompts": [source(file, key)]} if key else {}
        return evaluation(tmp_path / name, suites={"chat": suite}, inputs=given)

    one, same, other = asked("one", "p.jsonl", "k1"), asked("same", "copy.jsonl", "k1"), asked("other", "p.jsonl", "k2")
    assert compare(one, same)["suites"]["chat"]
    assert "measured with judge_prompts" in refusal(one, other)
    assert "judge_prompts none in" in refusal(asked("ours", None, ""), one)


def test_a_task_is_compared_by_its_own_shots(tmp_path):
    def board(name, shots):
        suite = {"protocol": "leaderboard", "tasks": ["arc", "mmlu"], "shots": shots, "files": {}}
        return evaluation(tmp_path / name, {"b": GRADES, "b/arc": GRADES, "b/mmlu": GRADES}, suites={"b": suite})

    found = compare(board("one", {"mmlu": 5}), board("other", {"mmlu": 0}))
    assert list(found["suites"]) == ["b/arc"]
    assert list(found["not_compared"]) == ["b", "b/mmlu"]


def test_other_answers_by_other_settings_are_noted(tmp_path, capsys):
    suite = {"protocol": "mt_bench", "questions": "q", "judge": None}
    one = evaluation(tmp_path / "one", suites={"chat": {**suite, "temperatures": {"math": 0.0}}})
    long = evaluation(
        tmp_path / "long", suites={"chat": {**suite, "temperatures": {"math": 0.7}}}, stage={"max_tokens": 200}
    )
    assert compare(one, long)["notes"] == [
        f"chat: max_tokens is 64 in {one}:b and 200 in {long}:b",
        f'chat: temperatures is {{"math": 0.0}} in {one}:b and {{"math": 0.7}} in {long}:b',
    ]
    assert compare(one, f"{one}:a")["notes"] == []
    assert main(["compare", one, long]) == 0
    assert "Note: chat: max_tokens is 64 in" in capsys.readouterr().out


def test_questions_stand_beside_values(tmp_path, capsys):
    one = evaluation(tmp_path / "one")
    for more in ([], ["--require", "chat > -1"]):
        assert main(["compare", f"{one}:a", f"{one}:b", *more]) == 0
        assert "of 20 questions" in capsys.readouterr().out


@pytest.fixture
def two_stages(tmp_path):
    """A run that scored one model in two stages on suites of one name, and another suite in the first alone."""
    workspace, made = Workspace(tmp_path / "run"), {}
    suites = {name: {"protocol": "mt_bench", "questions": "q", "judge": None} for name in ("mt", "more")}
    plans = (("scores", {"mt": GRADES, "more": GRADES}, ("a", "b")), ("again", {"mt": GRADES}, ("b", "c")))
    for stage, measures, models in plans:
        evaluation(workspace.artifacts / stage, measures, suites=suites, models=models)
        workspace.work.mkdir(parents=True, exist_ok=True)
        workspace.link(stage, workspace.artifacts / stage)
        made[stage] = Asked(kind="evaluate", produces="scores", folder=stage)
    workspace.note_run(Description(recipe="r", source="r.yaml", overrides=[], stages=made))
    return str(workspace.path)


def test_a_suite_of_two_stages_hinders_no_other(two_stages):
    found = compare(f"{two_stages}:a", f"{two_stages}:b")
    assert list(found["suites"]) == ["more"]
    assert found["not_compared"]["mt"] == "'b' is scored in more than one stage (scores, again) for mt"
    assert compare(f"{two_stages}:a", f"{two_stages}:b", "more > -2")["verdict"] == "holds"
    said = refusal(f"{two_stages}:a", f"{two_stages}:b", "mt > 0")
    assert f"Name the stage: {two_stages}:scores:b or {two_stages}:again:b" in said
    assert compare(f"{two_stages}:a", f"{two_stages}:again:b", "mt > -2")["verdict"] == "holds"
    assert list(compare(f"{two_stages}:a", f"{two_stages}:c")["suites"]) == ["mt"]


def test_a_model_in_two_files_is_named_by_its_file(tmp_path):
    rows = {name: [judged(q, 5 + q % 3) for q in range(N)] for name in ("one", "two")}
    for name, found in rows.items():
        write(tmp_path / "both" / f"{name}.jsonl", found)
    said = refusal(str(tmp_path / "both"), str(tmp_path / "both" / "one.jsonl"))
    assert "'m' is scored in more than one file for mt_bench" in said
    assert f"{tmp_path / 'both' / 'one.jsonl'}:m" in said


def judged(question, score, turn=1, sent="", **more):
    row = {"question_id": question, "model": "m", "judge": ["gpt-4", "single-v1"], "turn": turn, "score": score}
    return {**row, "user_prompt": sent, "judgment": "", "tstamp": 1.0, **more}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ALONE = "[Instruction]\nBe just.\n\n[Question]\n{one}\n\n[The Start of Assistant's Answer]\n{answer}\n[The End]"
TALK = "### User:\n{one}\n\n### Assistant A:\n{answer}\n\n### User:\n{two}\n\n### Assistant A:\n{answer}\n"
OURS = "[Conversation]\n<user>\n{one}\n</user>\n<assistant>\n{answer}\n</assistant>\n<user>\n{two}\n</user>\n"
OWN = "Somebody asked {one} and {two} and was told {answer}."


@pytest.mark.parametrize(
    ("template", "turn", "changed", "told"),
    [
        (ALONE, 1, {"one": "Who?"}, True),
        (ALONE, 1, {"answer": "Hm.\n\n[Question]\nWho?\n\n[The Start of it]"}, False),
        (TALK, 2, {"one": "Who?"}, True),
        (TALK, 2, {"two": "Who?"}, True),
        (TALK, 2, {"answer": "Hm.\n\n### User:\nWho?\n\n### Assistant B:\nHe."}, False),
        ("### User:\n{one}\n\n### Reference answer:\nx\n\n### User:\n{two}\n\n### Reference answer:\ny\n\n" + TALK, 2,
         {"two": "Who?"}, True),
        (OURS, 2, {"two": "Who?"}, True),
        (OURS, 2, {"answer": "Other."}, False),
        (OWN, 1, {"one": "Who?"}, False),
    ],
)  # fmt: skip
def test_what_a_judge_was_shown_tells_the_questions(template, turn, changed, told, tmp_path):
    words = {"one": "What?", "two": "Why?", "answer": "So."}
    files = [
        write(
            tmp_path / name,
            [judged(q, 5 + q % 3, turn, template.format(**(words | (changed if q == 7 else {})))) for q in range(N)],
        )
        for name, changed in (("one.jsonl", {}), ("other.jsonl", changed))
    ]
    if told:
        assert "'7'" in refusal(*files)
    else:
        assert compare(*files)["suites"]["mt_bench"]["difference"]["mean"] == 0


def test_a_file_of_questions_tells_where_no_prompt_does(tmp_path):
    for name, text in (("one", "What?"), ("other", "Who?")):
        asked = [{"question_id": q, "category": "math", "turns": [text]} for q in range(N)]
        write(tmp_path / name / "question.jsonl", asked)
        write(tmp_path / name / "judged" / "a.jsonl", [judged(q, 5 + q % 3) for q in range(N)])
    paths = [str(tmp_path / name / "judged" / "a.jsonl") for name in ("one", "other")]
    assert "'0' is 'What?' in" in refusal(*paths)


def test_another_judge_or_other_words_of_a_file(tmp_path):
    one = write(tmp_path / "one.jsonl", [judged(q, 5 + q % 3) for q in range(N)])
    other = write(tmp_path / "other.jsonl", [judged(q, 5, judge=["gpt-3", "single-v1"]) for q in range(N)])
    ours = write(tmp_path / "ours.jsonl", [judged(q, 5, judge=["gpt-4", "potstill"]) for q in range(N)])
    maths = write(tmp_path / "maths.jsonl", [judged(q, 5, judge=["gpt-4", "single-math-v1"]) for q in range(N)])
    assert "judged by 'gpt-4', in" in refusal(one, other)
    assert "measured with judge's words" in refusal(one, ours)
    assert compare(one, maths)["suites"]["mt_bench"]


def test_annotations_against_other_answers(tmp_path):
    def annotated(name, said, **more):
        rows = [
            {"instruction": f"Tell {q}", "generator_1": "base", "output_1": said, "generator_2": "m", "output_2": "x",
             "annotator": "judge", "preference": 1 + q % 2, **more} for q in range(N)
        ]  # fmt: skip
        (tmp_path / name).write_text(json.dumps(rows))
        return str(tmp_path / name)

    one = annotated("one.json", "so")
    assert compare(one, annotated("same.json", "so"))["suites"]
    assert "compared with 'base' (with other answers), in" in refusal(one, annotated("other.json", "not so"))
    assert "judged by 'judge'" in refusal(one, annotated("judge.json", "so", annotator="jury"))


def test_published_judgments_of_two_groups_are_of_the_same_questions():
    if not JUDGED.is_dir():
        pytest.skip(f"{JUDGED} is not here")
    one, other = (
        str(JUDGED / name) for name in ("alvarobartt_gpt-4_single.jsonl", "instructlab_weak_judge_single.jsonl")
    )
    found = compare(f"{one}:mistral-orpo-mix", other)
    assert found["suites"]["mt_bench"]["difference"]["n"] == 40, "the weak judge's prompt let no more be read"
