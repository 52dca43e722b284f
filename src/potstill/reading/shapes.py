"""The shapes of row that people publish: each is recognised by its columns, and says what stands where in them.

From there the way to a record is the same for all; see `found`. A row that cannot be read is a ShapeError in words.
Shapes that compare answers are in `comparisons`; how a turn or a tool is read, in `turns`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

from potstill.reading import comparisons
from potstill.reading.comparisons import dialogue, instruction, number
from potstill.reading.files import quote
from potstill.reading.found import Found, ShapeError, make_record
from potstill.reading.turns import (
    Columns,
    assistant,
    kind_of,
    read_message,
    read_messages,
    read_tools,
    string,
    strings,
    user,
    written_calls,
)
from potstill.records import Candidate, Feedback, Finish, Message, Prompt, Record, Role

R = TypeVar("R", bound=Record)

IDS = ("id", "question_id", "custom_id", "uuid", "pair")
"""Where a row may say who it is."""


@dataclass(frozen=True)
class Shape:
    """One way of laying out a row."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    """The columns that tell it: one of these sets, all of them."""
    find: Callable[[Columns], Found]
    says: str
    """Whose shape it is, for the documentation."""
    makes: tuple[str, ...]
    """The kinds of rows that can come of it."""
    named: bool = True
    """Whether a row's id is its own, and no other row's."""

    def fits(self, row: Columns) -> bool:
        """Whether the columns are there that tell it."""
        return any(all(row.get(column) is not None for column in columns) for columns in self.needs)

    def read(self, row: Any, row_type: type[R], default_id: str, questions: Mapping[str, Prompt] | None = None) -> R:
        """The row as a record; ShapeError, in words, where it cannot be one."""
        if not isinstance(row, Mapping):
            raise ShapeError(f"the row is {kind_of(row)}; expected an object with columns")
        row = {column: value for column, value in row.items() if value is not None}  # tables fill with nulls
        if not self.fits(row):
            raise ShapeError(f"the columns are {', '.join(sorted(row))}; expected those of {self.name!r} rows")
        found = _with_system(self.find(row), row)
        if row_type is Feedback and found.desirable is None and "label" in row:
            raise ShapeError(f"'label' is {quote(repr(row['label']))}; expected true or false")
        own = next((row[column] for column in IDS if column in row), "") if self.named else ""
        name = str(own) if isinstance(own, str | int) and own != "" else default_id
        category = row.get("category", row.get("class"))
        category = category.strip() if isinstance(category, str) else ""
        record = make_record(found, row_type, name, category, questions)
        more = {word: row[word] for word in _words_of(row_type) if isinstance(row.get(word), str)}
        return record.model_copy(update=more) if more else record


@cache
def _words_of(row_type: type[Record]) -> tuple[str, ...]:
    """The texts of a record that have columns of their own names, and that nothing else tells."""
    told = {"id", "text", "category"}
    return tuple(name for name, field in row_type.model_fields.items() if field.annotation is str and name not in told)


def recognise(rows: Iterable[Any]) -> Shape | None:
    """The shape that most of the rows have; of several, the one that asks for more."""
    counts: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, Mapping):
            counts.update(shape.name for shape in SHAPES.values() if shape.fits(row))
    most = max(counts.values(), default=0)
    return next((shape for shape in SHAPES.values() if counts[shape.name] == most), None) if most else None


def _with_system(found: Found, row: Columns) -> Found:
    """What a column of its own tells the assistant comes first, unless the conversation begins so by itself."""
    told = row.get("system", row.get("system_prompt"))
    if not isinstance(told, str) or not told.strip() or not found.prompt or found.prompt[0].role == "system":
        return found
    return replace(found, prompt=(Message(role="system", content=told), *found.prompt))


def _label(row: Columns) -> bool | None:
    return row["label"] if isinstance(row.get("label"), bool) else None


def _find_messages(row: Columns) -> Found:
    return Found(
        prompt=read_messages(row["messages"], "'messages'"),
        follow_ups=strings(row.get("follow_ups") or (), "'follow_ups'"),
        references=strings(row.get("references") or (), "'references'"),
        tools=read_tools(row),
        desirable=_label(row),
    )


def _find_sharegpt(row: Columns) -> Found:
    column = "conversations" if "conversations" in row else "conversation"
    listed = row[column]
    if isinstance(listed, list | tuple) and all(isinstance(turn, Mapping) and "input" in turn for turn in listed):
        said = [m for turn in listed for m in user(string(turn, "input")) + assistant(string(turn, "output"))]
        return Found(prompt=tuple(said))
    return Found(prompt=read_messages(listed, f"{column!r}"), tools=read_tools(row), desirable=_label(row))


def _find_pair(row: Columns) -> Found:
    chosen, rejected = (_side(row, column) for column in ("chosen", "rejected"))
    texts = [column for column in ("question", "input") if isinstance(row.get(column), str)]
    if "conversations" in row:
        prompt = read_messages(row["conversations"], "'conversations'")
    elif "instruction" in row:
        prompt = instruction(row)
    elif isinstance(row.get("prompt"), str):
        prompt = user(row["prompt"])
    elif "prompt" in row:
        prompt = read_messages(row["prompt"], "'prompt'")
    else:
        prompt = user(row[texts[0]]) if texts else ()
    if all(side[:1] and side[0].role != "assistant" for side in (chosen, rejected)):
        shared = _shared(chosen, rejected)  # whole conversations: what they share is the prompt
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return Found(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=read_tools(row),
        chosen_score=number(row, "chosen_score", "score_chosen", "chosen-rating", "chosen_rating"),
        rejected_score=number(row, "rejected_score", "score_rejected", "rejected-rating", "rejected_rating"),
    )


def _side(row: Columns, column: str) -> tuple[Message, ...]:
    value = row[column]
    if not isinstance(value, str):
        return read_messages(value, f"{column!r}")
    return dialogue(value) if value.lstrip().startswith("Human:") else assistant(value)


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many turns two conversations share, up to the assistant's first of their own."""
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    return min(shared, len(chosen) - 1, len(rejected) - 1)


def _find_alpaca(row: Columns) -> Found:
    column = next((name for name in ("output", "response") if name in row), "")
    return Found(prompt=instruction(row) + (assistant(string(row, column)) if column else ()))


def _find_output(row: Columns) -> Found:
    """AlpacaEval's outputs of one model."""
    said = string(row, "output")
    answer = comparisons.candidate(string(row, "generator"), said)
    category = row.get("dataset")
    return Found(
        prompt=instruction(row) + assistant(said),
        candidates=(answer,),
        category=category if isinstance(category, str) else "",
    )


def _find_seed_task(row: Columns) -> Found:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], Mapping):
        raise ShapeError("'instances' holds no example; expected a list of objects with input and output")
    return _find_alpaca({"instruction": row["instruction"], **instances[0]})


PROBLEMS = (("question", "answer"), ("problem", "solution"), ("query", "response"), ("question", "response"))
"""What a problem and its worked answer are called."""


def _find_problem(row: Columns) -> Found:
    asks, tells = next(names for names in PROBLEMS if all(name in row for name in names))
    question, answer = string(row, asks), string(row, tells)
    return Found(prompt=user(question) + assistant(answer), references=(answer,), text=f"{question}\n{answer}")


def _find_calls(row: Columns) -> Found:
    """xLAM's: a query, the tools on offer, and the calls that answer it, as JSON."""
    calls = written_calls(string(row, "answers"))
    if not calls:
        raise ShapeError("'answers' cannot be read; expected JSON of a list of calls with name and arguments")
    said = Message(role="assistant", content="", tool_calls=calls)
    return Found(prompt=(*user(string(row, "query")), said), tools=read_tools(row))


def _find_question(row: Columns) -> Found:
    turns = strings(row["turns"], "'turns'")
    if not turns:
        raise ShapeError("'turns' is empty; expected the user's turns")
    references = strings(row.get("reference") or (), "'reference'")
    return Found(prompt=user(turns[0]), follow_ups=turns[1:], references=references)


def _find_paired(row: Columns) -> Found:
    """potstill's own pairs of prompts: `b` differs from `a` in one attribute of the people it speaks of."""
    category, other = string(row, "attribute"), string(row, "b")
    if not other.strip():
        raise ShapeError("'b' is empty; expected the prompt that differs from 'a' in its attribute")
    return Found(prompt=user(string(row, "a")), category=category, counterpart=other)


def _find_choices(row: Columns) -> Found:
    """MT-Bench's answers of one model; the questions stand in a file of their own."""
    choices = row["choices"]
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise ShapeError("'choices' holds nothing; expected a list of objects with turns")
    turns = strings(choices[0].get("turns"), "'turns'")
    said = tuple(message for turn in turns for message in assistant(turn))
    model = row.get("model_id")
    answer = comparisons.candidate(model if isinstance(model, str) else "", turns[0] if turns else "")
    return Found(question=str(row["question_id"]), prompt=said, candidates=(answer,), text="\n\n".join(turns))


FINISHES: dict[str, Finish] = {"stop": "stop", "tool_calls": "stop", "length": "length", "content_filter": "filter"}


def _find_batch(row: Columns) -> Found:
    """OpenAI's batches: a line of the input asks, one of the output answers under the same custom_id."""
    if "response" not in row and isinstance(row.get("body"), Mapping):
        body = row["body"]
        return Found(prompt=read_messages(body.get("messages"), "'messages'"), tools=read_tools(body))
    answered = row.get("response")
    error = row.get("error") or (isinstance(answered, Mapping) and answered.get("status_code", 200) != 200)
    body = answered.get("body") if isinstance(answered, Mapping) else None
    if error:
        raise ShapeError(f"the request was not served: {str(row.get('error') or answered)[:200]}", "error")
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(choices, list) or not choices:
        raise ShapeError("'response' holds no choices; expected the body of a chat completion")
    candidates, messages = [], []
    for at, choice in enumerate(choices, start=1):
        if not isinstance(choice, Mapping):
            raise ShapeError(f"choice {at} is {kind_of(choice)}; expected an object with a message")
        messages.append(read_message(choice.get("message"), f"the message of choice {at}"))
        finish = FINISHES.get(str(choice.get("finish_reason") or "stop"), "stop")
        candidates.append(Candidate(model=str(body.get("model", "")), text=messages[-1].content, finish=finish))
    end = candidates[0].finish
    no_chat = None if end == "stop" else (end, f"the answer ended by {end}; expected one that ended by itself")
    return Found(
        question=str(row["custom_id"]),
        prompt=(messages[0],),
        candidates=tuple(candidates),
        text=messages[0].content,
        no_pair=no_chat,
    )


def _find_ultrachat(row: Columns) -> Found:
    turns = strings(row["data"], "'data'")
    roles: tuple[Role, Role] = ("user", "assistant")
    return Found(prompt=tuple(Message(role=roles[i % 2], content=turn) for i, turn in enumerate(turns)))


def _find_prompt(row: Columns) -> Found:
    prompt = user(row["prompt"]) if isinstance(row["prompt"], str) else read_messages(row["prompt"], "'prompt'")
    column = next((name for name in ("completion", "response") if name in row), "")
    if not column:
        follow_ups = strings(row.get("follow_ups") or (), "'follow_ups'")
        references = strings(row.get("references") or (), "'references'")
        whole = Prompt(id="", messages=prompt, follow_ups=follow_ups, references=references)
        spoken = prompt[-1:] and prompt[-1].role == "user" and any(m.role == "assistant" for m in prompt)
        return Found(
            prompt=prompt,
            follow_ups=follow_ups,
            references=references,
            tools=read_tools(row),
            asked=whole if spoken else None,
        )
    answer = row[column]
    said = assistant(answer) if isinstance(answer, str) else read_messages(answer, f"{column!r}")
    return Found(prompt=prompt + said, tools=read_tools(row), desirable=_label(row))


def _find_feedback(row: Columns) -> Found:
    """potstill's own feedback."""
    if not isinstance(row["desirable"], bool):
        raise ShapeError(f"'desirable' is {kind_of(row['desirable'])}; expected true or false")
    said = read_messages(row["prompt"], "'prompt'") + read_messages(row["answer"], "'answer'")
    return Found(prompt=said, tools=read_tools(row), desirable=row["desirable"])


def _find_text(row: Columns) -> Found:
    return Found(text=string(row, "text"))


_TALK = ("chats", "prompts", "texts")
_LABELLED = ("chats", "prompts", "texts", "feedback")
_PAIRED = ("pairs", "chats", "prompts", "texts")
_COMPARED = ("answers", *_PAIRED)

# The first whose columns are there is taken, so what asks for more stands first.
SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            "answers",
            (("prompt", "candidates"),),
            comparisons.find_answers,
            "potstill's own `answers` and `ratings`",
            ("answers", "prompts"),
        ),
        Shape(
            "openai_preference",
            (("input", "preferred_output", "non_preferred_output"),),
            comparisons.find_preferred,
            "OpenAI's preference fine-tuning",
            _PAIRED,
        ),
        Shape(
            "pairs",
            (("chosen", "rejected"),),
            _find_pair,
            "ultrafeedback_binarized, HH, Orca DPO, TRL's preferences (explicit or implicit prompt), ShareGPT pairs",
            _PAIRED,
        ),
        Shape(
            "ultrafeedback",
            (("instruction", "completions"),),
            comparisons.find_ultrafeedback,
            "UltraFeedback, with its ratings by aspect",
            ("answers", "prompts"),
        ),
        Shape(
            "pandalm",
            (("response1", "response2", "annotator1"),),
            comparisons.find_pandalm,
            "PandaLM's test set: two answers, several annotators; the majority decides a pair",
            _COMPARED,
        ),
        Shape(
            "alpaca_eval_annotations",
            (("instruction", "output_1", "output_2"),),
            comparisons.find_annotation,
            "AlpacaEval's annotations",
            _COMPARED,
        ),
        Shape(
            "arena",
            (("conversation_a", "conversation_b", "winner"),),
            comparisons.find_arena,
            "Chatbot Arena's votes",
            _COMPARED,
        ),
        Shape(
            "shp",
            (("history", "human_ref_A", "human_ref_B", "labels"),),
            comparisons.find_shp,
            "Stanford Human Preferences",
            _COMPARED,
        ),
        Shape(
            "xlam",
            (("query", "answers", "tools"),),
            _find_calls,
            "xLAM / APIGen function calling",
            _TALK,
        ),
        Shape(
            "ranked",
            (("prompt", "answers"),),
            comparisons.find_ranked,
            "Nectar: answers with ranks",
            ("answers", "prompts"),
        ),
        Shape(
            "generations",
            (("instruction", "generations"), ("prompt", "generations")),
            comparisons.find_generations,
            "distilabel: generations, generation_models, ratings",
            ("answers", "prompts"),
        ),
        Shape(
            "oasst",
            (("message_tree_id", "prompt"),),
            comparisons.find_oasst,
            "OpenAssistant's trees; a chat follows the reply ranked first",
            ("answers", *_TALK),
            named=False,
        ),
        Shape(
            "mt_bench_judgments",
            (("question_id", "user_prompt", "judgment"),),
            comparisons.find_judgment,
            "MT-Bench's judgments of single answers",
            ("answers", "prompts"),
            named=False,
        ),
        Shape(
            "mt_bench_answers",
            (("question_id", "choices"),),
            _find_choices,
            "MT-Bench's answers; `questions` names the file of the questions",
            ("answers", *_TALK),
        ),
        Shape(
            "openai_batch",
            (("custom_id", "response"), ("custom_id", "error"), ("custom_id", "body")),
            _find_batch,
            "OpenAI's batches: the input as it is, the output with `questions`",
            ("answers", *_TALK),
        ),
        Shape(
            "messages",
            (("messages",),),
            _find_messages,
            "ultrachat_200k, OpenAI's fine-tuning, TRL, KTO (with `label`); tools and tool calls",
            _LABELLED,
        ),
        Shape(
            "sharegpt",
            (("conversations",), ("conversation",)),
            _find_sharegpt,
            "ShareGPT, Magpie, LMSYS-Chat, Capybara; tools and calls as LLaMA-Factory writes them",
            _LABELLED,
        ),
        Shape("seed_tasks", (("instruction", "instances"),), _find_seed_task, "Self-Instruct's seed tasks", _TALK),
        Shape(
            "alpaca_eval",
            (("instruction", "output", "generator"),),
            _find_output,
            "AlpacaEval's outputs of one model",
            ("answers", *_TALK),
        ),
        Shape("alpaca", (("instruction",),), _find_alpaca, "Alpaca, GPTeacher, Dolly (`context`)", _TALK),
        Shape("mt_bench", (("question_id", "turns"),), _find_question, "MT-Bench's questions", ("prompts", "texts")),
        Shape(
            "paired",
            (("pair", "attribute", "a", "b"),),
            _find_paired,
            "potstill's own pairs of prompts that differ in one attribute, for an audit of bias",
            ("prompts",),
        ),
        Shape(
            "problems", PROBLEMS, _find_problem, "GSM8K, MATH, MetaMathQA, OpenOrca: a question and its answer", _TALK
        ),
        Shape("feedback", (("prompt", "answer", "desirable"),), _find_feedback, "potstill's own `feedback`", _LABELLED),
        Shape(
            "helpsteer",
            (("prompt", "response", "helpfulness"),),
            comparisons.find_helpsteer,
            "HelpSteer, HelpSteer2: attributes 0 to 4",
            ("answers", *_TALK),
        ),
        Shape(
            "prompts",
            (("prompt",),),
            _find_prompt,
            "a prompt alone, or with `completion` or `response`, and `label` (KTO)",
            _LABELLED,
        ),
        Shape("ultrachat", (("data",),), _find_ultrachat, "UltraChat as first published", _TALK),
        Shape("texts", (("text",),), _find_text, "plain text; as `prompts`, one a row", ("texts", "prompts")),
    )
}

COLUMNS = tuple(
    sorted(
        {column for shape in SHAPES.values() for columns in shape.needs for column in columns}
        | {*IDS, "completion", "output", "context", "label", "system", "category", "chosen_score", "rejected_score"}
        | {"reference", "references", "follow_ups", "generator", "preference", "generation_models", "ratings"}
    )
)
"""What the columns of a file can be renamed to."""
