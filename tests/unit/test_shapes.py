"""Everyone's shapes of row: each example is told by its columns, makes what the table says, and nothing else."""

import contextlib
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import DataError
from potstill.reading.files import read_lines
from potstill.reading.formats import SNIFFED, Reading, examine, sniff
from potstill.reading.found import BAD_ROW, ShapeError
from potstill.reading.shapes import SHAPES, Shape, recognise
from potstill.records import (
    ROWS,
    Answers,
    Chat,
    Feedback,
    Message,
    Pair,
    Prompt,
    Rating,
    Record,
    Text,
)

SHARED = Path("../shared/data")
U, A = "user", "assistant"
KINDS = ("texts", "prompts", "chats", "answers", "pairs", "feedback")


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def said(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


Q, QA = turns((U, "q")), turns((U, "q"), (A, "a"))
QB = turns((U, "q"), (A, "b"))
TOOL = {"name": "weather", "parameters": {"type": "object"}}
CALL = {"name": "weather", "arguments": {"city": "Paris"}}
FRAME = "[Question]\nq\n\n[The Start of Assistant's Answer]\na\n[The End of Assistant's Answer]"
TWO_TURNS = (
    "<|The Start of Assistant A's Conversation with User|>\n\n### User:\nq\n\n### Assistant A:\na\n\n"
    "### User:\nr\n\n### Assistant A:\nc\n\n<|The End of Assistant A's Conversation with User|>"
)
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "text": "q",
        "role": "prompter",
        "replies": [
            {"text": "b", "role": "assistant", "rank": 1, "message_id": "two", "replies": []},
            {"text": "a", "role": "assistant", "rank": 0, "message_id": "one", "replies": []},
            {"text": "c", "role": "assistant", "rank": None, "message_id": "three"},
        ],
    },
}
BATCH = {"model": "m", "choices": [{"index": 0, "message": {"role": A, "content": "a"}, "finish_reason": "stop"}]}

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "answers": [{"id": "i", "prompt": {"id": "p", "messages": Q}, "candidates": [{"model": "m", "text": "a"}]}],
    "openai_preference": [
        {
            "input": {"messages": Q, "tools": [], "parallel_tool_calls": True},
            "preferred_output": turns((A, "a")),
            "non_preferred_output": turns((A, "b")),
        }
    ],
    "pairs": [
        {"prompt": "q", "prompt_id": "p", "chosen": QA, "rejected": QB, "messages": QA, "score_chosen": 9.0},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"system": "", "question": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "chosen": turns((A, "a")), "rejected": turns((A, "b")), "chosen_model": "m"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "messages": None, "candidates": None},
    ],
    "ultrafeedback": [
        {"source": "s", "instruction": "q", "models": ["m"], "completions": [{"model": "m", "response": "a"}]}
    ],
    "pandalm": [
        {
            "idx": 0,
            "motivation_app": "app",
            "cmp_key": "one_two",
            "instruction": "q",
            "input": "",
            "response1": "a",
            "response2": "b",
            "annotator1": 1,
            "annotator2": 1,
            "annotator3": 2,
        }
    ],
    "alpaca_eval_annotations": [
        {
            "instruction": "q",
            "output_1": "b",
            "generator_1": "base",
            "output_2": "a",
            "generator_2": "new",
            "annotator": "gpt",
            "preference": 1.75,
            "dataset": "d",
        }
    ],
    "arena": [
        {"conversation_a": QA, "conversation_b": QB, "winner": "model_a", "model_a": "x", "model_b": "y", "judge": "j"}
    ],
    "shp": [{"history": "q", "human_ref_A": "b", "human_ref_B": "a", "labels": 0, "score_A": 3, "score_B": 30}],
    "xlam": [{"id": 0, "query": "q", "answers": json.dumps([CALL]), "tools": json.dumps([TOOL])}],
    "ranked": [
        {
            "prompt": "\n\nHuman: q\n\nAssistant: ",
            "answers": [{"answer": "b", "model": "m2", "rank": 2}, {"answer": "a", "model": "m1", "rank": 1}],
        }
    ],
    "generations": [
        {"instruction": "q", "generations": ["a", "b"], "generation_models": ["x", "y"], "ratings": [5, None]},
        {"prompt": "q", "generations": ["a", "b"]},
    ],
    "oasst": [TREE],
    "mt_bench_judgments": [
        {
            "question_id": 81,
            "model": "m",
            "judge": ["gpt", "v1"],
            "user_prompt": FRAME,
            "judgment": "fine",
            "score": 8,
            "turn": 1,
        }
    ],
    "mt_bench_answers": [{"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["a"]}]}],
    "openai_batch": [
        {"id": "b", "custom_id": "81", "response": {"status_code": 200, "body": BATCH}, "error": None},
    ],
    "messages": [
        {"messages": QA, "prompt": "q", "prompt_id": "p"},
        {"messages": [{"role": U, "content": [{"type": "text", "text": "q"}]}, {"role": A, "content": "a"}]},
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "instruction": "q"},
        {"conversation": QA, "conversation_id": "x", "model": "m"},
        {"source": "capybara", "conversation": [{"input": "q", "output": "a"}]},
    ],
    "seed_tasks": [{"id": "s", "instruction": "q", "instances": [{"input": "", "output": "a"}]}],
    "alpaca_eval": [{"dataset": "d", "instruction": "q", "output": "a", "generator": "m"}],
    "alpaca": [
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "context": "", "response": "a", "category": "open_qa"},
    ],
    "mt_bench": [{"question_id": 1, "turns": ["q"]}],
    "problems": [{"question": "q", "answer": "a"}, {"problem": "q", "solution": "a"}, {"query": "q", "response": "a"}],
    "feedback": [{"id": "f", "prompt": Q, "answer": turns((A, "a")), "desirable": True}],
    "helpsteer": [{"prompt": "q", "response": "a", "helpfulness": 3, "verbosity": 2}],
    "prompts": [{"prompt": "q", "completion": "a"}, {"prompt": Q, "response": "a"}],
    "ultrachat": [{"id": "u", "data": ["q", "a"]}],
    "paired": [{"pair": "p", "attribute": "age", "a": "q", "b": "r"}],
    "texts": [{"text": "q"}],
}
ROWS_OF = [(name, row) for name, rows in EXAMPLES.items() for row in rows]
QUESTIONS = {"81": Prompt(id="81", messages=(Message(role="user", content="q"),), category="math")}


def read(row: Any, kind: str, shape: str | None = None, **given: Any) -> Any:
    found = SHAPES[shape] if shape else recognise([row])
    assert found is not None
    return found.read(row, ROWS[kind], "default", given.get("questions", QUESTIONS))


def test_every_shape_has_an_example() -> None:
    assert set(EXAMPLES) == set(SHAPES)


@pytest.mark.parametrize(("name", "row"), ROWS_OF)
def test_a_shape_is_told_by_its_columns_and_makes_what_it_says(name: str, row: dict[str, Any]) -> None:
    shape = recognise([row])
    assert shape is not None
    assert shape.name == name
    made = {}
    for kind in KINDS:
        try:
            made[kind] = shape.read(row, ROWS[kind], "default", QUESTIONS)
        except ShapeError:
            continue
    labelled = {"feedback"} if "feedback" in shape.makes and name != "feedback" else set()  # only with a label
    assert set(made) | labelled | {"texts"} == {*shape.makes, "texts"}
    for kind in set(made) & {"chats"}:
        said_last = made[kind].messages[-1]
        assert said_last.content == ("" if name == "xlam" else "a")
    if "prompts" in made:
        assert said(made["prompts"].messages)[-1] == (U, "q")
    if "pairs" in made:
        pair = made["pairs"]
        assert (said(pair.prompt), said(pair.chosen), said(pair.rejected)) == ([(U, "q")], [(A, "a")], [(A, "b")])
    if "answers" in made:
        assert said(made["answers"].prompt.messages) == [(U, "q")]
        assert "a" in [candidate.text for candidate in made["answers"].candidates]


def scores(answers: Answers) -> dict[str, list[float | None]]:
    return {c.model: [rating.score for rating in c.ratings] for c in answers.candidates}


def test_human_votes_are_ratings_of_each_annotator_and_the_majority_is_a_pair() -> None:
    row = EXAMPLES["pandalm"][0]
    answers = read(row, "answers")
    assert scores(answers) == {"one": [1.0, 1.0, 0.0], "two": [0.0, 0.0, 1.0]}
    assert {r.aspect for c in answers.candidates for r in c.ratings} == {"human_preference"}
    assert [r.judge for r in answers.candidates[0].ratings] == ["annotator1", "annotator2", "annotator3"]
    assert answers.prompt.category == "app"


@pytest.mark.parametrize(
    ("votes", "outcome"),
    [
        ((2, 2, 1), "b"),
        ((1, 1, 0), "a"),
        ((0, 0, 1), "tie"),
        ((0, 0, 0), "tie"),
        ((0, 1, 2), "tie"),  # nobody has most votes
        ((1, 2, 0), "tie"),
        ((2, 0, 2), "b"),
    ],
)
def test_a_tie_is_never_turned_into_a_preference(votes: tuple[int, int, int], outcome: str) -> None:
    """Trap: "Ratings "N/A" averaged as numbers; a tie turned into a preference"."""
    row = EXAMPLES["pandalm"][0] | {f"annotator{i}": vote for i, vote in enumerate(votes, start=1)}
    if outcome == "tie":
        with pytest.raises(ShapeError) as caught:
            read(row, "pairs")
        assert caught.value.reason == "tie"
        assert scores(read(row, "answers"))["one"] == [0.5 if vote == 0 else float(vote == 1) for vote in votes]
    else:
        assert read(row, "pairs").chosen[0].content == outcome


@pytest.mark.parametrize("vote", [3, -1, True, None, "1"])
def test_a_vote_that_is_none_is_refused(vote: Any) -> None:
    with pytest.raises(ShapeError, match="the annotators say"):
        read(EXAMPLES["pandalm"][0] | {"annotator2": vote}, "answers", "pandalm") if vote is not None else read(
            EXAMPLES["pandalm"][0] | {"annotator2": 7}, "answers", "pandalm"
        )


@pytest.mark.parametrize(
    ("preference", "ratings", "pair"),
    [
        (1, (1.0, 0.0), ("b", 1.0)),
        (2.0, (0.0, 1.0), ("a", 1.0)),
        (1.75, (0.25, 0.75), ("a", 0.75)),
        (1.25, (0.75, 0.25), ("b", 0.75)),
        (0, (0.5, 0.5), "tie"),  # as AlpacaEval 1 stores a draw
        (1.5, (0.5, 0.5), "tie"),
        (None, (None, None), "unrated"),
    ],
)
def test_alpaca_evals_preferences(preference: Any, ratings: tuple[Any, Any], pair: Any) -> None:
    row = EXAMPLES["alpaca_eval_annotations"][0] | {"preference": preference}
    assert scores(read(row, "answers")) == {"base": [ratings[0]], "new": [ratings[1]]}
    if isinstance(pair, str):
        with pytest.raises(ShapeError) as caught:
            read(row, "pairs")
        assert caught.value.reason == pair
    else:
        found = read(row, "pairs")
        assert (found.chosen[0].content, found.chosen_score) == pair
        assert found.chosen_score + found.rejected_score == 1


def test_an_unparsed_judgment_is_no_score() -> None:
    """Trap: "A failed parse stored as 0, as -1 in the mean, or dropped without a count"."""
    row = EXAMPLES["mt_bench_judgments"][0]
    (candidate,) = read(row, "answers").candidates
    assert candidate.ratings == (Rating(aspect="overall", score=8, rationale="fine", judge="gpt/v1"),)
    (candidate,) = read(row | {"score": -1}, "answers").candidates
    assert candidate.ratings[0].score is None
    assert candidate.ratings[0].rationale == "N/A: fine"


def test_what_was_judged_is_read_back_from_the_judges_prompt() -> None:
    row = EXAMPLES["mt_bench_judgments"][0]
    answers = read(row | {"user_prompt": TWO_TURNS}, "answers")
    assert said(answers.prompt.messages) == [(U, "q"), (A, "a"), (U, "r")]
    assert answers.candidates[0].text == "c"
    reference = FRAME.replace(
        "\n\n[The Start", "\n\n[The Start of Reference Answer]\nx\n[The End of Reference Answer]\n\n[The Start"
    )
    assert read(row | {"user_prompt": reference}, "answers").candidates[0].text == "a"
    with pytest.raises(ShapeError, match="not in MT-Bench's frame"):
        read(row | {"user_prompt": "rate this"}, "answers")


def test_answers_that_name_their_question_are_joined_with_it() -> None:
    question = Prompt(id="81", messages=QUESTIONS["81"].messages, follow_ups=("r",), category="math")
    row = {"question_id": 81, "model_id": "m", "choices": [{"turns": ["a", "c"]}]}
    chat = read(row, "chats", questions={"81": question})
    assert said(chat.messages) == [(U, "q"), (A, "a"), (U, "r"), (A, "c")]
    assert (chat.id, chat.category) == ("81", "math")
    with pytest.raises(ShapeError, match="2 answers to 1 user turns"):
        read(row, "chats")
    with pytest.raises(
        ShapeError, match=r"names its question \(81\) without its words; expected the file of the quest"
    ):
        read(row, "chats", questions=None)
    with pytest.raises(ShapeError, match="its question '81' is not among the 'questions'"):
        read(row, "chats", questions={"82": question})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"error": {"code": "rate_limit"}}, "error"),
        ({"response": {"status_code": 500, "body": {}}}, "error"),
        ({"response": {"status_code": 200, "body": {**BATCH, "choices": []}}}, BAD_ROW),
        (
            {"response": {"body": {**BATCH, "choices": [{**BATCH["choices"][0], "finish_reason": "length"}]}}},  # type: ignore[index,dict-item]
            "length",
        ),
    ],
)
def test_a_batch_says_what_was_not_answered(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ShapeError) as caught:
        read(EXAMPLES["openai_batch"][0] | change, "chats")
    assert caught.value.reason == reason


def test_a_batchs_input_is_prompts() -> None:
    row = {"custom_id": "81", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": Q}}
    assert read(row, "prompts") == Prompt(id="81", messages=QUESTIONS["81"].messages)


def test_calls_and_their_tools() -> None:
    chat = read(EXAMPLES["xlam"][0], "chats")
    assert [(call.name, json.loads(call.arguments)) for call in chat.messages[-1].tool_calls] == [
        ("weather", {"city": "Paris"})
    ]
    assert json.loads(chat.tools[0])["function"] == TOOL


def test_a_tree_follows_the_reply_ranked_first() -> None:
    chat = read(TREE, "chats")
    assert said(chat.messages) == [(U, "q"), (A, "a")]
    assert scores(read(TREE, "answers")) == {"two": [0.0], "one": [1.0], "three": [None]}
    deep = json.loads(json.dumps(TREE))
    deep["prompt"]["replies"][1]["replies"] = [{"text": "r", "role": "prompter", "replies": []}]
    assert said(read(deep, "chats").messages) == [(U, "q"), (A, "a")], "a user's turn that nobody answered is left out"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [("", "b", "empty"), ("a", " ", "empty"), ("a", "a", "identical"), ("a", 5, BAD_ROW)],
)
def test_a_pair_that_is_none_has_its_reason(chosen: Any, rejected: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": chosen, "rejected": rejected}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.reason for row in examine(path, Pair)] == ["", reason]


def test_a_system_column_comes_first() -> None:
    alpaca = {"instruction": "q", "output": "a", "system": "be kind"}
    assert said(read(alpaca, "chats").messages)[0] == ("system", "be kind")
    orca = {"system_prompt": "be kind", "question": "q", "response": "a"}
    assert said(read(orca, "chats").messages) == [("system", "be kind"), (U, "q"), (A, "a")]
    own = {"system": "other", "messages": turns(("system", "mine"), (U, "q"), (A, "a"))}
    assert said(read(own, "chats").messages)[0] == ("system", "mine")
    pair = {"system": "be kind", "question": "q", "chosen": "a", "rejected": "b"}
    assert said(read(pair, "pairs").prompt) == [("system", "be kind"), (U, "q")]


def test_openais_fine_tuning_files() -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "be kind"},
            {"role": U, "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
            {"role": A, "content": "a", "weight": 0},
            {"role": U, "content": "r"},
            {"role": A, "content": "c", "weight": 1},
        ]
    }
    chat = read(row, "chats")
    assert said(chat.messages)[:2] == [("system", "be kind"), (U, "one two")]
    assert [m.train for m in chat.messages if m.role == A] == [False, True]
    row["messages"][1]["content"] = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(ShapeError, match="holds a part of the type 'image_url'; expected parts of text only"):
        read(row, "chats")
    row["messages"][1]["content"] = "q"
    row["messages"][2]["weight"] = 0.5
    with pytest.raises(ShapeError, match=r"the weight of turn 3 of 'messages' is 0\.5; expected 0 or 1"):
        read(row, "chats")


def test_the_shape_is_that_of_most_of_the_first_rows(tmp_path: Path) -> None:
    """The first row may be an exception, and tables fill columns with nulls."""
    rows = [{"text": "a stray line"}, *[{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(5)]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read_rows = list(examine(path, Pair))
    assert [row.number for row in read_rows if row.error] == [1]
    assert "expected those of 'pairs' rows" in str(read_rows[0].error)
    mixed = [{"text": "t", "prompt": None, "chosen": None, "rejected": None}] * 2
    found = recognise(mixed)
    assert found is not None
    assert found.name == "texts"


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"ask": {"text": "q"}, "good": "a", "bad": "b"}) + "\n")
    reading = Reading(columns={"prompt": "ask.text", "chosen": "good", "rejected": "bad"})
    (row,) = examine(path, Pair, reading)
    assert row.record is not None
    assert (said(row.record.prompt), said(row.record.chosen)) == ([(U, "q")], [(A, "a")])
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: there is no column 'gut', which is to be 'chosen'; the row has ask"
    ):
        list(examine(path, Pair, Reading(columns={"chosen": "gut"})))
    with pytest.raises(DataError, match="no known shape of row has columns ask, bad, good"):
        list(examine(path, Pair))


# Every file of real data: (file, shape, {kind of row: (how many, {reason: how many are not})}). What is not named here
# makes none of that kind.
FILES: list[tuple[str, str, dict[str, tuple[int, dict[str, int]]]]] = [
    ("format_demos/alpaca_en_demo.json", "alpaca", {"chats": (999, {}), "prompts": (999, {}), "texts": (999, {})}),
    ("format_demos/c4_demo.jsonl", "texts", {"texts": (300, {})}),
    ("format_demos/wiki_demo.txt", "texts", {"texts": (30, {})}),
    ("format_demos/dpo_en_demo.json", "pairs", {"pairs": (300, {}), "chats": (300, {}), "prompts": (300, {})}),
    ("format_demos/glaive_toolcall_en_demo.json", "sharegpt", {"chats": (300, {}), "prompts": (300, {})}),
    (
        "format_demos/kto_en_demo.json",
        "messages",
        {"feedback": (300, {}), "chats": (150, {"undesirable": 150}), "prompts": (300, {})},
    ),
    ("gpteacher/codegen_instruct.json", "alpaca", {"chats": (4535, {}), "prompts": (4535, {})}),
    ("gpteacher/roleplay_instruct.json", "alpaca", {"chats": (1923, {}), "prompts": (1923, {})}),
    ("gsm8k/train.jsonl", "problems", {"chats": (7473, {}), "prompts": (7473, {}), "texts": (7473, {})}),
    ("gsm8k/test.jsonl", "problems", {"chats": (1319, {}), "prompts": (1319, {}), "texts": (1319, {})}),
    (  # empty turns, and two answers in a row
        "hh_rlhf/harmless_base_test.jsonl.gz",
        "pairs",
        {"pairs": (2299, {BAD_ROW: 9, "empty": 4}), "chats": (2300, {BAD_ROW: 12}), "prompts": (2312, {})},
    ),
    (  # chosen = rejected
        "instruction_preference/instruction_data_with_preference.json",
        "pairs",
        {"pairs": (1094, {"identical": 6}), "chats": (1100, {})},
    ),
    ("mt_bench/question.jsonl", "mt_bench", {"prompts": (80, {})}),
    ("mt_bench/model_answer/mistral-orpo.jsonl", "mt_bench_answers", {"chats": (80, {}), "texts": (80, {})}),
    ("mt_bench/model_answer/mistral-orpo-mix.jsonl", "mt_bench_answers", {"chats": (80, {})}),
    ("mt_bench/model_answer/mistral-orpo-trl.jsonl", "mt_bench_answers", {"chats": (80, {})}),
    ("mt_bench/model_answer/mistral-orpo-capybara.jsonl", "mt_bench_answers", {"chats": (80, {})}),
    ("mt_bench/reference_answer/gpt-4.jsonl", "mt_bench_answers", {"chats": (30, {})}),
    ("mt_bench/model_judgment/alvarobartt_gpt-4_single.jsonl", "mt_bench_judgments", {"answers": (800, {})}),
    ("mt_bench/model_judgment/instructlab_weak_judge_single.jsonl", "mt_bench_judgments", {"answers": (160, {})}),
    (  # six answers were taken for true or false by a spreadsheet; others say nothing
        "pandalm/testset_v1.json",
        "pandalm",
        {"answers": (999, {}), "prompts": (999, {}), "pairs": (836, {"tie": 105, "empty": 58})},
    ),
    ("self_instruct/seed_tasks.jsonl", "seed_tasks", {"prompts": (175, {}), "chats": (175, {})}),
    ("ultrachat/ultra_eval.json", "ultrachat", {"prompts": (385, {})}),
    *[
        (
            f"alpaca_eval/{name}/model_outputs.json",
            "alpaca_eval",
            {"chats": (n, bad), "answers": (n + sum(bad.values()), {})},
        )
        for name, n, bad in (
            ("baselines/gpt4_1106_preview", 805, {}),
            ("baselines/text_davinci_003", 803, {BAD_ROW: 2}),
            ("llama-2-70b-chat-hf", 804, {}),
            ("vicuna-13b", 805, {}),
            ("zephyr-7b-alpha", 805, {}),
        )
    ],
    *[
        (
            f"alpaca_eval/{name}/annotations.json",
            "alpaca_eval_annotations",
            {"answers": (805, {}), "pairs": (805 - sum(left.values()), left)},
        )
        for name, left in (
            ("llama-2-70b-chat-hf/alpaca_eval_gpt4", {"tie": 4, "unrated": 1, "empty": 1}),
            ("vicuna-13b/alpaca_eval_gpt4", {"tie": 2}),
            ("vicuna-13b/weighted_alpaca_eval_gpt4_turbo", {"tie": 2}),
            ("zephyr-7b-alpha/alpaca_eval_gpt4", {"tie": 3, "unrated": 1}),
        )
    ],
]
NO_ROWS = {
    "README.md",
    "mt_bench/judge_prompts.jsonl",
    "alpaca_eval/leaderboards/alpaca_eval_cot_gpt4_turbo_fn_leaderboard.csv",
    "alpaca_eval/leaderboards/alpaca_eval_gpt4_leaderboard.csv",
    "alpaca_eval/leaderboards/evaluators_leaderboard.csv",
    "alpaca_eval/leaderboards/lc_weights_length_controlled_v1.csv",
    "alpaca_eval/leaderboards/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
}


def shape_of(path: Path) -> str:
    return sniff(list(islice(read_lines(path), SNIFFED)), path.name)


def questions() -> dict[str, Prompt]:
    rows = examine(SHARED / "mt_bench" / "question.jsonl", Prompt)
    return {row.record.id: row.record for row in rows if row.record}


@pytest.mark.parametrize(("name", "shape", "made"), FILES, ids=[name for name, _, _ in FILES])
def test_real_files(name: str, shape: str, made: dict[str, tuple[int, dict[str, int]]]) -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    assert shape_of(SHARED / name) == shape
    reading = Reading(questions=questions() if shape == "mt_bench_answers" else None)
    for kind, (good, left) in made.items():
        rows = list(examine(SHARED / name, ROWS[kind], reading))
        records: list[Any] = [row.record for row in rows if row.record]
        assert (len(records), Counter(row.reason for row in rows if row.error)) == (good, left), kind
        assert len({record.id for record in records}) == good
        assert all(_words(record) for record in records)


def test_every_real_file_is_in_the_table_or_holds_no_rows() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    there = {path.relative_to(SHARED).as_posix() for path in SHARED.rglob("*") if path.is_file()}
    table = {name for name, _, _ in FILES} | {"alpaca_eval/leaderboards/instruction_difficulty_recovered.csv"}
    assert there == table | NO_ROWS
    for name in NO_ROWS:
        with pytest.raises(DataError, match=r"no known shape of row has columns|a file of an unknown kind"):
            shape_of(SHARED / name)


def test_the_first_and_last_rows_of_real_files_are_those_of_the_file() -> None:
    """By another way: the whole file at once, and the columns as their makers name them."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    pandalm = json.loads((SHARED / "pandalm/testset_v1.json").read_text())
    answers = [row.record for row in examine(SHARED / "pandalm/testset_v1.json", Answers)]
    for at in (0, -1):
        row, found = pandalm[at], answers[at]
        assert found is not None
        assert [c.text for c in found.candidates] == [row["response1"], row["response2"]]
        assert row["instruction"] in found.prompt.messages[0].content
        assert row["input"] in found.prompt.messages[0].content
        votes = [row[f"annotator{i}"] for i in (1, 2, 3)]
        assert scores(found)[found.candidates[0].model] == [0.5 if v == 0 else float(v == 1) for v in votes]
    glaive = json.loads((SHARED / "format_demos/glaive_toolcall_en_demo.json").read_text())
    chats = [row.record for row in examine(SHARED / "format_demos/glaive_toolcall_en_demo.json", Chat)]
    for at in (0, -1):
        chat, written = chats[at], glaive[at]
        assert chat is not None
        assert len(chat.messages) == len(written["conversations"])
        assert [json.loads(t)["function"] for t in chat.tools] == json.loads(written["tools"] or "[]")
        for message, turn in zip(chat.messages, written["conversations"], strict=True):
            if turn["from"] == "function_call":
                assert json.loads(message.tool_calls[0].arguments) == json.loads(turn["value"])["arguments"]
            else:
                assert message.content == turn["value"]
    judged = (SHARED / "mt_bench/model_judgment/alvarobartt_gpt-4_single.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in judged]
    found_rows = list(examine(SHARED / "mt_bench/model_judgment/alvarobartt_gpt-4_single.jsonl", Answers))
    unscored = [row for row in found_rows if row.record and row.record.candidates[0].ratings[0].score is None]
    assert len(unscored) == sum(row["score"] == -1 for row in rows) == 1
    for row, found in zip(rows, found_rows, strict=True):
        if found.record is not None:
            assert len(found.record.prompt.messages) == (1 if row["turn"] == 1 else 3)
    kto = json.loads((SHARED / "format_demos/kto_en_demo.json").read_text())
    feedback = [row.record for row in examine(SHARED / "format_demos/kto_en_demo.json", Feedback)]
    assert [row.desirable for row in feedback if row] == [row["label"] for row in kto]


def _words(record: Record) -> bool:
    """Whether something is said in it."""
    if isinstance(record, Text):
        return bool(record.text.strip())
    if isinstance(record, Answers):
        return any(candidate.text or candidate.finish == "empty" for candidate in record.candidates)
    messages = record.chosen if isinstance(record, Pair) else getattr(record, "messages", None) or record.answer  # type: ignore[attr-defined]
    return all(message.content or message.tool_calls for message in messages if message.role != "tool")


OTHERS = ["annotator2", "cmp_key", "generator_1", "preference", "judge", "model", "score", "system", "id", "category"]
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", U, A, "[]", '[{"name": "f"}]', "81"])
)
PARTS = st.dictionaries(
    st.sampled_from(["role", "content", "text", "turns", "replies", "rank", "answer", "messages", "body", "choices"])
    | st.sampled_from(
        ["message", "status_code", "finish_reason", "input", "output", "model", "response", "instruction"]
    ),
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("role"), inner), max_leaves=3
    ),
    max_size=4,
)
VALUES = LEAVES | PARTS | st.lists(LEAVES | PARTS, max_size=3)


@given(st.sampled_from(list(SHAPES.values())), st.data(), st.sampled_from(KINDS), st.booleans())
@settings(max_examples=400)
def test_whatever_stands_in_a_shapes_columns_it_is_read_or_refused_in_words(
    shape: Shape, data: st.DataObject, kind: str, asked: bool
) -> None:
    columns = [*data.draw(st.sampled_from(shape.needs)), *data.draw(st.lists(st.sampled_from(OTHERS), max_size=3))]
    row = {column: data.draw(VALUES, label=column) for column in columns}
    try:
        record = shape.read(row, ROWS[kind], "x", QUESTIONS if asked else None)
    except ShapeError:
        return
    assert isinstance(record, ROWS[kind])
    assert type(record).model_validate_json(record.to_line()) == record


@given(st.sampled_from(ROWS_OF), st.data(), st.sampled_from(KINDS))
@settings(max_examples=400)
def test_a_good_row_with_one_thing_spoilt_is_read_or_refused_in_words(
    named: tuple[str, dict[str, Any]], data: st.DataObject, kind: str
) -> None:
    name, row = named
    spoilt = json.loads(json.dumps(row))
    holder = spoilt
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(holder[key], dict | list) or not holder[key] or data.draw(st.booleans()):
            holder[key] = data.draw(VALUES)
            break
        holder = holder[key]
    with contextlib.suppress(ShapeError):
        SHAPES[name].read(spoilt, ROWS[kind], "x", QUESTIONS)
