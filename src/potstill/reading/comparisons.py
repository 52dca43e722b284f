"""The shapes of row that compare answers: several models' words to one prompt, with what people or judges said of them.

Every one of them makes `answers`, whose candidates carry the ratings; those with a verdict of their own make `pairs`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from math import isfinite
from typing import Any

from potstill.reading.files import WRITTEN_NUMBER, quote
from potstill.reading.found import SILENT, Found, ShapeError
from potstill.reading.turns import ROLES, Columns, assistant, kind_of, read_messages, read_tools, string, strings, user
from potstill.records import Candidate, Finish, Message, Prompt, Rating, Role

HUMAN = "human_preference"
"""The aspect of what people preferred: 1 to the better answer, 0 to the other, 0.5 to both of a tie."""


def instruction(row: Columns) -> tuple[Message, ...]:
    """Alpaca's instruction, with its input (Dolly's context) below it."""
    given = row.get("input") or row.get("context") or ""
    if not isinstance(given, str):
        raise ShapeError(f"'input' is {kind_of(given)}; expected text")
    text = string(row, "instruction")
    return user(f"{text}\n\n{given}" if given.strip() else text)


def number(row: Columns, *columns: str) -> float | None:
    """The first of the columns that holds anything. ShapeError where that is no finite number."""
    for column in columns:
        value = row.get(column)
        if value is None:
            continue
        written = isinstance(value, str) and WRITTEN_NUMBER.fullmatch(value)
        if isinstance(value, bool) or not (written or isinstance(value, int | float | Decimal)):
            said = f"{quote(value)!r}" if isinstance(value, str) else kind_of(value)
            raise ShapeError(f"{column!r} is {said}; expected a number, such as 4.5")
        try:
            score = float(value)
        except OverflowError as error:
            raise ShapeError(f"{column!r} is a number too large for a score; expected a smaller one") from error
        if not isfinite(score):
            raise ShapeError(f"{column!r} is {score}; expected a finite number")
        return score
    return None


def candidate(model: str, text: str, *ratings: Rating, finish: Finish = "stop") -> Candidate:
    """An answer; one that says nothing is kept as such."""
    if not text.strip():
        return Candidate(model=model, text="", finish="empty", reason="it says nothing", ratings=ratings)
    return Candidate(model=model, text=text, finish=finish, ratings=ratings)


def compared(
    prompt: tuple[Message, ...], candidates: Sequence[Candidate], better: int | None, why: tuple[str, str]
) -> Found:
    """Two answers of which the one at `better` is preferred; None: neither, and why, as a reason and in words."""
    found = Found(prompt=prompt, candidates=tuple(candidates), no_pair=why)
    if better is None:
        return found
    texts = candidates[better].text, candidates[1 - better].text
    one, other = (assistant(text) if text else () for text in texts)
    return replace(found, chosen=one, rejected=other, no_pair=None if one and other else SILENT)


TIE = ("tie", "neither answer is preferred; expected one that is")


def find_pandalm(row: Columns) -> Found:
    """PandaLM's test set (Wang et al. 2023): two answers, and 1, 2 or 0 (a tie) from each annotator. Most votes win."""
    names = sorted(column for column in row if re.fullmatch(r"annotator\d+", column))
    votes = [row[name] for name in names]
    if any(type(vote) is not int or vote not in (0, 1, 2) for vote in votes):
        raise ShapeError(f"the annotators say {votes}; expected 1, 2, or 0 for a tie, of each")
    first, _, second = str(row.get("cmp_key", "")).partition("_")
    candidates = []
    for at, model in ((1, first or "1"), (2, second or "2")):
        ratings = [
            Rating(aspect=HUMAN, score=0.5 if vote == 0 else float(vote == at), judge=name)
            for name, vote in zip(names, votes, strict=True)
        ]
        said = row.get(f"response{at}")
        if isinstance(said, str):
            candidates.append(candidate(model, said, *ratings))
        else:  # the published set holds some that a spreadsheet took for true or false
            why = f"'response{at}' is {kind_of(said)}; expected text"
            candidates.append(Candidate(model=model, text="", finish="error", reason=why, ratings=tuple(ratings)))
    (most, count), *others = Counter(votes).most_common()
    settled = most != 0 and all(other < count for _, other in others)
    found = compared(instruction(row), candidates, most - 1 if settled else None, TIE)
    return replace(found, category=str(row.get("motivation_app", "")))


def find_annotation(row: Columns) -> Found:
    """AlpacaEval's annotations: `preference` runs from 1 (the first answer is better) to 2; version 1 stores a draw
    as 0, which counts as 1.5; null where the judge failed."""
    preference = number(row, "preference")
    if preference is not None and not (preference == 0 or 1 <= preference <= 2):
        raise ShapeError(f"'preference' is {preference}; expected 1 to 2, or 0 for a draw")
    share = None if preference is None else 0.5 if preference == 0 else preference - 1
    judge = str(row.get("annotator", ""))
    candidates = []
    for at, score in ((1, None if share is None else 1 - share), (2, share)):
        rationale = "" if share is not None else "N/A: the judge failed"
        rating = Rating(aspect="preference", score=score, rationale=rationale, judge=judge)
        candidates.append(candidate(str(row.get(f"generator_{at}", at)), string(row, f"output_{at}"), rating))
    why = TIE if share is not None else ("unrated", "the judge failed; expected a preference")
    better = None if share is None or share == 0.5 else int(share > 0.5)
    found = compared(instruction(row), candidates, better, why)
    if better is not None and share is not None:
        high = max(share, 1 - share)
        found = replace(found, chosen_score=high, rejected_score=1 - high)
    return replace(found, category=str(row.get("dataset", "")))


def find_arena(row: Columns) -> Found:
    """Chatbot Arena's votes: two conversations over the same user turns, and a winner."""
    one, two = (read_messages(row[f"conversation_{side}"], f"'conversation_{side}'") for side in "ab")
    if [m for m in one if m.role == "user"] != [m for m in two if m.role == "user"]:
        raise ShapeError("the two conversations have other user turns; expected the same")
    winner = row["winner"]
    better = {"model_a": 0, "model_b": 1}.get(str(winner))
    if better is None and "tie" not in str(winner):
        raise ShapeError(f"'winner' is {winner!r}; expected model_a, model_b or a tie")
    prompt, sides = one[:1], (one[1:], two[1:])
    scores = (0.5, 0.5) if better is None else (1.0 - better, float(better))
    judge = str(row.get("judge", ""))
    candidates = tuple(
        candidate(str(row.get(f"model_{name}", name)), said[0].content, Rating(aspect=HUMAN, score=score, judge=judge))
        for name, said, score in zip("ab", sides, scores, strict=True)
        if len(said) == 1  # a candidate is one turn; longer ones make pairs only
    )
    if better is None:
        return Found(prompt=prompt, candidates=candidates, no_pair=TIE)
    return Found(prompt=prompt, candidates=candidates, chosen=sides[better], rejected=sides[1 - better])


def find_shp(row: Columns) -> Found:
    """Stanford's Human Preferences: `labels` is 1 where A is preferred, 0 where B is."""
    label = row["labels"]
    if type(label) is not int or label not in (0, 1):
        raise ShapeError(f"'labels' is {label!r}; expected 1 (A is preferred) or 0 (B is)")
    candidates = [
        candidate(side, string(row, f"human_ref_{side}"), Rating(aspect=HUMAN, score=float((side == "A") == label)))
        for side in "AB"
    ]
    scores = [number(row, f"score_{side}") for side in "AB"]
    found = compared(user(string(row, "history")), candidates, 1 - label, TIE)
    return replace(found, chosen_score=scores[1 - label], rejected_score=scores[label])


def find_preferred(row: Columns) -> Found:
    """OpenAI's files for preference fine-tuning."""
    given = row["input"]
    if not isinstance(given, Mapping):
        raise ShapeError(f"'input' is {kind_of(given)}; expected an object with messages")
    return Found(
        prompt=read_messages(given.get("messages"), "'messages'"),
        chosen=read_messages(row["preferred_output"], "'preferred_output'"),
        rejected=read_messages(row["non_preferred_output"], "'non_preferred_output'"),
        tools=read_tools(given),
    )


def find_ultrafeedback(row: Columns) -> Found:
    """UltraFeedback (Cui et al. 2023). Its overall score turned the worst answers into the best: it is not read."""
    if not isinstance(row["completions"], list):
        raise ShapeError(f"'completions' is {kind_of(row['completions'])}; expected a list")
    return Found(prompt=instruction(row), candidates=tuple(_completion(value) for value in row["completions"]))


def _completion(value: Any) -> Candidate:
    if not isinstance(value, Mapping):
        raise ShapeError(f"a completion is {kind_of(value)}; expected an object with model and response")
    ratings = []
    annotations = value.get("annotations") or {}
    for aspect, word in sorted(annotations.items() if isinstance(annotations, Mapping) else ()):
        told = word if isinstance(word, Mapping) else {}
        score = str(told.get("Rating", "")).strip()
        rationale = told.get("Rationale")
        rating = float(score) if score in ("1", "2", "3", "4", "5") else None
        words = rationale if isinstance(rationale, str) else "" if rating else f"N/A: {score}"
        ratings.append(Rating(aspect=aspect, score=rating, rationale=words))
    return candidate(string(value, "model"), string(value, "response"), *ratings)


def find_answers(row: Columns) -> Found:
    """potstill's own answers."""
    try:
        prompt = Prompt.model_validate(_said(row["prompt"]))
        candidates = tuple(Candidate.model_validate(_said(value)) for value in row["candidates"])
    except (ValueError, TypeError) as error:
        raise ShapeError(f"'prompt' or 'candidates' cannot be read ({error}); expected potstill's answers") from error
    return Found(asked=prompt, candidates=candidates)


def _said(value: Any) -> Any:
    """Without the nulls that tables fill what is not said with; that a score is null is said."""
    if isinstance(value, Mapping):
        return {name: _said(item) for name, item in value.items() if item is not None or name == "score"}
    return [_said(item) for item in value] if isinstance(value, list) else value


def find_ranked(row: Columns) -> Found:
    """Nectar's ranked answers: rank 1 is the best. A rating says how many of the row's answers are ranked below."""
    listed = row["answers"]
    if not isinstance(listed, list | tuple) or not all(isinstance(item, Mapping) for item in listed):
        raise ShapeError(f"'answers' is {kind_of(listed)}; expected a list of objects with answer and rank")
    ranks = [number(item, "rank") for item in listed]
    told = [rank for rank in ranks if rank is not None]
    candidates = []
    for at, (item, rank) in enumerate(zip(listed, ranks, strict=True)):
        score = None if rank is None else float(sum(other > rank for other in told))
        rating = Rating(aspect="rank", score=score, rationale="" if rank is not None else "N/A: no rank")
        candidates.append(candidate(str(item.get("model", at)), string(item, "answer"), rating))
    text = string(row, "prompt")
    prompt = dialogue(text) if text.lstrip().startswith("Human:") else user(text)
    if prompt[-1].role == "assistant" and not prompt[-1].content:  # the turn to be written
        prompt = prompt[:-1]
    return Found(asked=Prompt(id="", messages=prompt), candidates=tuple(candidates))


def find_generations(row: Columns) -> Found:
    """distilabel's columns: generations, generation_models and ratings, one of each an answer."""
    texts = strings(row["generations"], "'generations'")
    models = row.get("generation_models") or row.get("model_names") or [str(at) for at in range(len(texts))]
    ratings, words = row.get("ratings") or [], row.get("rationales") or []
    if not isinstance(ratings, list) or not isinstance(words, list):
        raise ShapeError("'ratings' or 'rationales' is no list; expected one of each an answer")
    models = strings(models, "'generation_models'")
    if len(models) != len(texts) or len(ratings) not in (0, len(texts)):
        raise ShapeError(f"there are {len(texts)} generations and another number of models or ratings")
    candidates = []
    for at, text in enumerate(texts):
        rated = []
        if ratings:
            score = None if ratings[at] == "N/A" else number({"rating": ratings[at]}, "rating")
            why = words[at] if len(words) == len(texts) and isinstance(words[at], str) else ""
            rated = [Rating(aspect="overall", score=score, rationale=why or ("" if score is not None else "N/A"))]
        candidates.append(candidate(models[at], text, *rated))
    prompt = instruction(row) if "instruction" in row else user(string(row, "prompt"))
    return Found(prompt=prompt, candidates=tuple(candidates))


ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def find_helpsteer(row: Columns) -> Found:
    """HelpSteer's attributes of one answer, 0 to 4 (Wang et al. 2023)."""
    prompt, answer = user(string(row, "prompt")), string(row, "response")
    scores = {name: number(row, name) for name in ATTRIBUTES if name in row}
    ratings = [
        Rating(aspect=name, score=score, rationale="" if score is not None else "N/A") for name, score in scores.items()
    ]
    return Found(prompt=prompt + assistant(answer), candidates=(candidate("1", answer, *ratings),))


def find_oasst(row: Columns) -> Found:
    """A tree of OpenAssistant: the chat goes on with the reply that people ranked first; the answers are the first
    turn's. A rating says how many of the ranked replies stand below."""
    root, turn, said = row["prompt"], row["prompt"], []
    if not isinstance(root, Mapping):
        raise ShapeError(f"'prompt' is {kind_of(root)}; expected an object with text and replies")
    replies = _replies(root)
    while True:
        role: Role | None = ROLES.get(str(turn.get("role")))
        if role is None:
            raise ShapeError(f"the role of a turn is {turn.get('role')!r}; expected prompter or assistant")
        said.append(Message(role=role, content=string(turn, "text")))
        following = _replies(turn)
        if not following:
            break
        turn = min(following, key=lambda reply: (_rank(reply) is None, _rank(reply)))
    if said[-1].role == "user":
        said.pop()
    told = [rank for rank in map(_rank, replies) if rank is not None]
    candidates = []
    for at, reply in enumerate(replies):
        rank = _rank(reply)
        score = None if rank is None else float(sum(other > rank for other in told))
        rating = Rating(aspect="rank", score=score, rationale="" if rank is not None else "N/A: no rank")
        candidates.append(candidate(str(reply.get("message_id", at)), string(reply, "text"), rating))
    return Found(prompt=tuple(said), candidates=tuple(candidates))


def _replies(turn: Columns) -> list[Columns]:
    replies = turn.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        raise ShapeError("'replies' cannot be read; expected a list of turns")
    return [reply for reply in replies if not reply.get("deleted")]


def _rank(reply: Columns) -> float | None:
    return number(reply, "rank")


_ASSISTANT_A = "<|The {} of Assistant A's Conversation with User|>"
_SINGLE = re.compile(
    r"\[Question\]\n(?P<question>.*?)\n\n(?:\[The Start of Reference Answer\]\n.*?\[The End of Reference Answer\]\n\n)?"
    r"\[The Start of Assistant's Answer\]\n(?P<answer>.*)\n\[The End of Assistant's Answer\]",
    re.DOTALL,
)


def find_judgment(row: Columns) -> Found:
    """A judgment of MT-Bench's single grading: what was judged is read back from the judge's own prompt. A score of
    -1, which is how a reply that could not be parsed was stored, is none."""
    text, score = string(row, "user_prompt"), number(row, "score")
    judges = strings(row.get("judge") or (), "'judge'")
    rationale = string(row, "judgment")
    if score is None or score < 0:
        score, rationale = None, f"N/A: {rationale}"
    rating = Rating(aspect="overall", score=score, rationale=rationale, judge="/".join(judges))
    single = _SINGLE.search(text)
    if single is not None:
        prompt, answer = user(single["question"]), single["answer"]
    else:
        begin, end = (_ASSISTANT_A.format(word) for word in ("Start", "End"))
        inside = text.partition(begin)[2].rpartition(end)[0]
        parts = re.split(r"\n### (User|Assistant A):\n", inside)
        said = [
            Message(role="user" if who == "User" else "assistant", content=words.strip("\n"))
            for who, words in zip(parts[1::2], parts[2::2], strict=True)
        ]
        if len(said) < 2 or said[-1].role != "assistant":
            raise ShapeError("'user_prompt' is not in MT-Bench's frame; expected the question and the answer in it")
        prompt, answer = tuple(said[:-1]), said[-1].content
    return Found(asked=Prompt(id="", messages=prompt), candidates=(candidate(string(row, "model"), answer, rating),))


def dialogue(text: str) -> tuple[Message, ...]:
    r"""HH's conversation in one string, its turns marked by "\n\nHuman:" and "\n\nAssistant:"."""
    messages: list[Message] = []
    for part in ("\n\n" + text.lstrip()).split("\n\nHuman:")[1:]:
        said, *answers = part.split("\n\nAssistant:")
        messages.append(Message(role="user", content=said.strip()))
        messages += [Message(role="assistant", content=answer.strip()) for answer in answers]
    return tuple(messages)
