"""Accuracy by a checker: one answer a question, right or not, where tools are offered with its calls really executed.

An answer that gives no final answer is not right, and so is one that ran into its limit or called without end: the
question was asked and not solved. Only an answer that never came has no value, and lowers the coverage.
"""

from collections.abc import Sequence

from potstill.evaluation.sheets import Sheet, Turn
from potstill.records import Chat, Message, Prompt
from potstill.skills.checkers import Checker
from potstill.skills.dialogue import Ask, Dialogue
from potstill.skills.traces import take_apart
from potstill.teachers.base import Reply, Request, request_seed


def as_question(chat: Chat) -> Prompt:
    """A chat as a question with its one reference: what comes before its last answer, and that."""
    *asked, answer = chat.messages
    return Prompt(id=chat.id, messages=tuple(asked), references=(answer.content,), category=chat.category)


def asking(questions: Sequence[Prompt], max_tokens: int, seed: int) -> Ask:
    """How a model is asked for its next turn."""

    def ask(place: int, number: int, messages: tuple[Message, ...]) -> Request:
        return Request(messages, max_tokens, seed=request_seed(seed, questions[place].id, "answer", number))

    return ask


def checked(suite: str, model: str, question: Prompt, dialogue: Dialogue, checker: Checker) -> Sheet:
    """The sheet of one question, with what the checker says of the answer."""
    asked, reply = question.messages[-1].content, dialogue.reply
    assert reply is not None
    called = [f"{c.name} {c.arguments}" for m in dialogue.messages for c in m.tool_calls]
    if reply.finish in ("error", "filter"):
        return Sheet(suite, model, question, (Turn(asked, None, reason=reply.reason or f"no answer: {reply.finish}"),))
    verdict = _verdict(question, dialogue, reply, checker)
    said = dialogue.answer if dialogue.answer is not None else reply.text
    judgment = "; ".join([verdict, *called])
    return Sheet(suite, model, question, (Turn(asked, said, float(verdict == "right"), judgment),))


def _verdict(question: Prompt, dialogue: Dialogue, reply: Reply, checker: Checker) -> str:
    """right, wrong, unread, or how the dialogue ended without an answer."""
    if dialogue.answer is None:
        return dialogue.ended
    thought = take_apart(reply)
    return (
        "unread"
        if thought is None
        else checker.check(thought.answer, question.references[0] if question.references else "")
    )
