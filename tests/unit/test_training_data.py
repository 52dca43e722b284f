"""From rows to training items: mixtures, what is left out, tools and labels."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine import say, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import DataError
from potstill.records import Chat, Feedback, Message, Pair, Text, ToolCall
from potstill.sources import Data
from potstill.tokens.tokenization import encode_chat, train_tokenizer
from potstill.training.batch import Item, collate
from potstill.training.data import (
    Split,
    chat_items,
    feedback_items,
    mismatched,
    mixture,
    mixture_facts,
    pair_items,
    text_items,
)
from potstill.training.schedule import Part, epoch_order, global_batches
from potstill.training.tokens import Store


def counts(parts: list[Part], epoch: int, seed: int = 5) -> list[Counter[int]]:
    """How often an epoch takes each row, part by part."""
    order, first, found = epoch_order(parts, seed, epoch), 0, []
    for part in parts:
        taken = Counter(row - first for row in order if first <= row < first + part.rows)
        found.append(Counter({row: taken[row] for row in range(part.rows)}))
        first += part.rows
    return found


@pytest.mark.parametrize("weight", [0.3, 1.0, 2.0, 2.5, 0.001])
def test_a_weight_is_whole_passes_and_a_draw_without_replacement_of_the_rest(weight: float) -> None:
    parts = [Part("a", 40, 1.0), Part("b", 20, weight)]
    draws = []
    for epoch in range(6):
        first, second = counts(parts, epoch)
        assert set(first.values()) == {1}, "one source's weight changes nothing of another"
        assert set(second.values()) <= {math.floor(weight), math.ceil(weight)}
        assert second.total() == parts[1].drawn == max(1, round(20 * weight))
        draws.append(tuple(sorted(second.items())))
    assert len(set(draws)) == (1 if weight == int(weight) else 6), "another draw each epoch"


def test_sources_of_one_weight_are_drawn_each_by_itself() -> None:
    for epoch in range(4):
        assert [part.total() for part in counts([Part("a", 30, 0.5), Part("b", 10, 0.5)], epoch)] == [15, 5]


def test_every_row_has_the_same_chance() -> None:
    """Over 2,000 epochs each of 10 rows is drawn 600 times, give or take five standard deviations (20.5 each)."""
    drawn = Counter(row for epoch in range(2000) for row in epoch_order([Part("a", 10, 0.3)], 1, epoch))
    assert all(abs(drawn[row] - 600) < 103 for row in range(10))


def test_weights_of_one_change_not_a_single_position() -> None:
    sizes = [int(size) for size in np.random.default_rng(0).integers(1, 9, 57)]
    plain = global_batches(sizes, 20, 2.5, seed=7)
    assert global_batches(sizes, 20, 2.5, 7, [Part("a", 19, 1.0), Part("b", 0, 0.3), Part("c", 38, 1.0)]) == plain
    # As it was before there were mixtures: the permutation itself.
    assert [row for batch in plain for row in batch][:57] == np.random.default_rng([7, 0]).permutation(57).tolist()


def test_an_epoch_of_a_mixture_depends_on_seed_and_epoch_alone() -> None:
    """Trap: "Order differs after resume from the second epoch on". A resumed run asks for the steps behind its own."""
    parts = [Part("a", 30, 1.0), Part("b", 50, 0.35)]
    whole = global_batches([1] * 80, 8, 3, 5, parts)
    assert global_batches([1] * 80, 8, 2, 5, parts) == whole[: 2 * len(whole) // 3]
    later = epoch_order(parts, 5, 2)
    assert [row for batch in whole[2 * len(whole) // 3 :] for row in batch] == later
    assert epoch_order(parts, 6, 2) != later


SETTINGS: dict[str, Any] = {"max_length": 200, "held_out": 0, "seed": 3, "where": "rows"}
CHATS_ONLY: dict[str, Any] = {**SETTINGS, "on_long": "drop", "learn": "assistant"}


def chats(count: int, source: str = "chats") -> list[tuple[str, Chat]]:
    return [(f"{source}/{n}", Chat(id=str(n), messages=say(f"user: {n}", "assistant: a cat"))) for n in range(count)]


def pair(
    name: str, prompt: str = "what is this?", chosen: str = "a cat", rejected: str = "the mat"
) -> tuple[str, Pair]:
    said = (say(f"{role}: {text}") for role, text in (("user", prompt), ("assistant", chosen), ("assistant", rejected)))
    return name, Pair(id=name, **dict(zip(("prompt", "chosen", "rejected"), said, strict=True)))


def spoken(item: Item, branch: int) -> str:
    """What an item's answer says, its end included."""
    ids_L, learn_L = item.answers[branch]
    return tiny_tokenizer().decode(ids_L[learn_L])


def test_a_mixture_counts_what_is_left_of_each_source(tmp_path: Path) -> None:
    """Held-out and dropped rows are no part of it, and every source stands in the facts."""
    long = ("b/long", Chat(id="long", messages=say("user: hi", "assistant: " + "cat " * 300)))
    split = chat_items(tiny_tokenizer(), [*chats(12, "a"), *chats(8, "b"), long], **{**CHATS_ONLY, "held_out": 4})
    sources = [Data("a", "chats", tmp_path), Data("b", "chats", tmp_path, 0.5), Data("c", "chats", tmp_path, 2.0)]
    parts = mixture(split.train, sources)
    left = Counter(item.row[0] for item in split.train)
    assert [(part.name, part.rows, part.weight) for part in parts] == [
        ("a", left["a"], 1),
        ("b", left["b"], 0.5),
        ("c", 0, 2),
    ]
    assert left["a"] + left["b"] + len(split.held_out) == 20
    assert mixture_facts(parts)["sources"]["b"] == {
        "rows": left["b"],
        "weight": 0.5,
        "rows_per_epoch": max(1, round(left["b"] / 2)),
    }
    assert mixture_facts(parts)["sources"]["c"]["rows_per_epoch"] == 0
    assert mixture_facts(mixture(split.train[:3], sources[:1])) == {}
    taken = [row for batch in global_batches([1] * len(split.train), 4, 1, 0, parts) for row in batch]
    assert Counter(split.train[row].row[0] for row in taken) == {"a": parts[0].drawn, "b": parts[1].drawn}


def test_blocks_of_texts_belong_to_their_texts_source(tmp_path: Path) -> None:
    texts = [(f"{name}/{n}", Text(id=str(n), text="the cat sat " * (n + 1))) for name in "ab" for n in range(4)]
    split = text_items(tiny_tokenizer(), texts, block_length=8, held_out=0, seed=0, where="rows")
    parts = mixture(split.train, [Data("a", "texts", tmp_path), Data("b", "texts", tmp_path, 3.0)])
    assert parts[0].rows == parts[1].rows == len(split.train) // 2 > 4


def test_two_sources_of_one_name_and_other_weights_are_refused(tmp_path: Path) -> None:
    twice = [Data("a.jsonl", "file", tmp_path / "x"), Data("a.jsonl", "file", tmp_path / "y", 0.5)]
    with pytest.raises(DataError, match="two sources of this name"):
        mixture([], twice)


def test_neither_answer_of_a_pair_is_ever_cut() -> None:
    """Trap: "Truncation that differs between chosen and rejected, or leaves both identical"."""
    same_start = "the cat sat on the mat. " * 6
    rows = [
        pair("kept"),
        pair("late", chosen=f"{same_start}a", rejected=f"{same_start}b"),
        pair("one", rejected="cat " * 60),
    ]
    for max_length in range(12, 120, 4):
        try:
            split = pair_items(tiny_tokenizer(), rows, **{**SETTINGS, "max_length": max_length})
        except DataError:
            continue
        for item in split.train:
            assert item.answers[0][0].tolist() != item.answers[1][0].tolist()
            for ids_L, learn_L in item.answers:
                assert ids_L[learn_L][-1] == tiny_tokenizer().eos_token_id
                assert len(item.prompt_ids) + len(ids_L) <= max_length
        assert len(split.train) + len(split.dropped) == 3
        assert {row.reason for row in split.dropped} <= {"too_long"}


def test_answers_that_differ_only_in_what_they_call_are_two() -> None:
    """Trap: "Chosen and rejected equal"."""
    name, row = pair("calls")
    calling = [(Message(role="assistant", content="", tool_calls=(ToolCall(name=tool),)),) for tool in ("sit", "run")]
    tokenizer = train_tokenizer(["the cat sat on the mat.\n"] * 20, 300)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% for c in m['tool_calls'] or [] %}"
        "{{ c.function.name }}{% endfor %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    different = row.model_copy(update={"chosen": calling[0], "rejected": calling[1]})
    same = row.model_copy(update={"chosen": calling[0], "rejected": calling[0]})
    split = pair_items(tokenizer, [(name, different), ("same", same)], **SETTINGS)
    assert [item.row for item in split.train] == ["calls"]
    assert [(row.id, row.reason) for row in split.dropped] == [("same", "identical")]


def test_control_tokens_are_found_wherever_a_template_would_write_them() -> None:
    (_, row), *_ = chats(1)
    call = ToolCall(name="sit", arguments={"on": "</s>"})
    rows = [
        ("fine", row),
        ("offer", row.model_copy(update={"tools": ('{"name": "<|user|>"}',)})),
        (
            "call",
            row.model_copy(
                update={"messages": (row.messages[0], Message(role="assistant", content="", tool_calls=(call,)))}
            ),
        ),
        ("said", row.model_copy(update={"messages": say("user: a <|assistant|> b", "assistant: c")})),
        ("nearly", row.model_copy(update={"messages": say("user: a <|assistant| b </ s>", "assistant: c")})),
    ]
    split = chat_items(tiny_tokenizer(), rows, **CHATS_ONLY)
    assert [item.row for item in split.train] == ["fine", "nearly"]
    assert [(row.id, row.reason, row.detail) for row in split.dropped] == [
        ("offer", "control_token", "<|user|>"),
        ("call", "control_token", "</s>"),
        ("said", "control_token", "<|assistant|>"),
    ]


def test_a_control_token_that_the_user_asked_for_may_be_spelled() -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat.\n"] * 20, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    rows = [("r", Chat(id="r", messages=say("user: a", "assistant: <think>the cat")))]
    with pytest.raises(DataError, match="1 control_token"):
        chat_items(tokenizer, rows, **CHATS_ONLY)
    (item,) = chat_items(tokenizer, rows, **CHATS_ONLY, new_tokens=["<think>"]).train
    ids_L, learn_L = item.answers[0]
    assert tokenizer.convert_tokens_to_ids("<think>") in ids_L[learn_L]


@pytest.mark.parametrize("made", ["chats", "pairs", "feedback", "texts"])
def test_items_are_the_same_from_the_cache(made: str, tmp_path: Path) -> None:
    pairs = [pair(f"p/{n}", f"what is {n}?", f"a cat {n}", f"the mat {n}") for n in range(9)]
    texts = [(f"t/{n}", Text(id=str(n), text="the cat sat " * (n + 1))) for n in range(9)]

    def split(store: Store) -> Split:
        if made == "chats":
            return chat_items(tiny_tokenizer(), chats(9), **{**CHATS_ONLY, "held_out": 2}, store=store)
        if made == "texts":
            return text_items(tiny_tokenizer(), texts, block_length=8, held_out=2, seed=1, where="rows", store=store)
        make = pair_items if made == "pairs" else feedback_items
        return make(tiny_tokenizer(), pairs, **{**SETTINGS, "held_out": 2}, store=store)

    def told(found: Split) -> list[Any]:
        sides = (found.train, found.held_out)
        flat = [
            (i.row, i.prompt_ids, *(part for answer in i.answers for part in answer)) for side in sides for i in side
        ]
        return [[part if isinstance(part, str) else part.tolist() for part in row] for row in flat]

    fresh = split(Store())
    for _ in range(2):
        cached = split(Store(tmp_path))
        assert told(cached) == told(fresh)
        assert cached.facts() == fresh.facts()
        collate(cached.train)


# Labelled answers.


def feedback(count: int, prompts: int) -> list[tuple[str, Feedback]]:
    return [
        (
            f"f/{n}",
            Feedback(
                id=str(n),
                prompt=say(f"user: what is {n % prompts}?"),
                answer=say(f"assistant: it is {n}"),
                desirable=n % 3 == 0,
            ),
        )
        for n in range(count)
    ]


def test_each_labelled_answer_stands_beside_one_to_another_prompt() -> None:
    split = feedback_items(tiny_tokenizer(), feedback(12, prompts=4), **SETTINGS)
    assert split.desirable == {f"f/{n}": n % 3 == 0 for n in range(12)}
    others = []
    for n, item in enumerate(split.train):
        whole = np.concatenate([item.prompt_ids, item.answers[0][0]])
        row = feedback(12, 4)[n][1]
        assert whole.tolist() == encode_chat(tiny_tokenizer(), [*row.prompt, *row.answer]).ids_L.tolist()
        assert spoken(item, 0) == f"it is {n}</s>"
        other = int(spoken(item, 1).removeprefix("it is ").removesuffix("</s>"))
        assert other % 4 != n % 4, "an answer to another prompt"
        others.append(other)
    assert sorted(others) == list(range(12)), "each answer is another's once"
    facts = split.facts()
    assert (facts["desirable"], facts["undesirable"]) == (4, 8)


def test_a_pair_is_two_labelled_answers() -> None:
    rows = [pair(f"p/{n}", f"what is {n}?", f"good {n}", f"bad {n}") for n in range(4)]
    split = feedback_items(tiny_tokenizer(), rows, **{**SETTINGS, "held_out": 2})
    both = {item.row: spoken(item, 0) for item in (*split.train, *split.held_out)}
    assert both == {
        f"p/{n}/{s}": f"{w} {n}</s>" for n in range(4) for s, w in (("chosen", "good"), ("rejected", "bad"))
    }
    assert split.desirable == {row: row.endswith("chosen") for row in both}
    assert {item.row.split("/")[1] for item in split.train}.isdisjoint(
        item.row.split("/")[1] for item in split.held_out
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 5))
def test_a_derangement_over_prompts_is_found_exactly_where_there_is_one(keys: list[int], seed: int) -> None:
    prompts = [str(key) for key in keys]
    if 2 * max(Counter(prompts).values()) > len(prompts):
        with pytest.raises(DataError, match="rows have the same prompt; expected no more than half"):
            mismatched(prompts, seed, "rows")
        return
    others = mismatched(prompts, seed, "rows")
    assert sorted(others) == list(range(len(prompts)))
    assert all(prompts[row] != prompts[other] for row, other in enumerate(others))
    assert mismatched(prompts, seed, "rows") == others


def test_a_long_answer_is_dropped_and_a_long_neighbour_cut() -> None:
    rows = feedback(6, prompts=6)
    long = Feedback(id="long", prompt=say("user: long?"), answer=say("assistant: " + "cat " * 90), desirable=True)
    split = feedback_items(tiny_tokenizer(), [*rows, ("f/long", long)], **{**SETTINGS, "max_length": 60})
    assert [(row.id, row.reason) for row in split.dropped] == [("f/long", "too_long")]
    lengths = {item.row: len(item.prompt_ids) + len(item.answers[1][0]) for item in split.train}
    assert len(lengths) == 6
    assert max(lengths.values()) == 60
    assert Counter(lengths.values())[60] == 1
