"""How much of damaged capitals does the truecaser give back, what does it change that was sound, and how fast is it?

    python bench/truecase.py [DATA] [--errors]
    python bench/truecase.py --conversations 1000000

DATA is a folder of real texts (../shared/data by default). One text in ten is held out, damaged in each way, and
restored by what the others teach. A damaged token is a word whose capitals the damage changed; it is restored where it
comes back as it was. `spoilt` are words of damaged texts that the damage left as they were and the truecaser did not,
as a share of all their words. `beside` is `lower` with the turn that was answered, in sound capitals, beside it.
`--conversations N` learns from N made-up conversations with an ever growing vocabulary and tells the memory it takes.
"""

import argparse
import gzip
import hashlib
import json
import pickle
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from potstill.curation.capitals import damage
from potstill.curation.truecase import FormCounts, Truecaser

DATA = Path(__file__).parents[2] / "shared" / "data"
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
FENCED = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+)", re.DOTALL)
START = re.compile(r"((?:\A|[.!?]\s+|\n\n)\W{0,3})([^\W\d_])(?!['’]?[A-Z])")
SENTENCE = re.compile(r"[^.!?\n]{25,}[.!?](?=\s|\Z)")
ANSWERS = ("baselines/gpt4_1106_preview", "baselines/text_davinci_003", "vicuna-13b", "llama-2-70b-chat-hf")


class Row(NamedTuple):
    """A text whose capitals are as its writer set them."""

    source: str
    text: str
    beside: str
    """What it answers."""
    group: str
    """Texts of one group are held out together."""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def read(data: Path) -> Iterator[Row]:
    """Prose of seven kinds."""
    for name, key, source in (
        ("gpteacher/roleplay_instruct.json", "response", "role play"),
        ("format_demos/alpaca_en_demo.json", "output", "instructions"),
        *((f"alpaca_eval/{model}/model_outputs.json", "output", "answers") for model in ANSWERS),
    ):
        for row in json.loads((data / name).read_text(encoding="utf-8")):
            yield Row(source, row[key], f"{row['instruction']}\n{row.get('input', '')}", row["instruction"])
    for line in (data / "format_demos/c4_demo.jsonl").read_text(encoding="utf-8").splitlines():
        yield from (Row("web", part, "", part) for part in json.loads(line)["text"].split("\n"))
    for line in (data / "format_demos/wiki_demo.txt").read_text(encoding="utf-8").splitlines():
        parts = re.split(r"(?<=[a-z]\.)(?=[A-Z])", line)  # paragraphs were joined without a space
        yield from (Row("encyclopedia", part, "", part) for part in parts)
    with gzip.open(data / "hh_rlhf/harmless_base_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            turns = re.split(r"\n\n(?:Human|Assistant): ?", json.loads(line)["chosen"])
            yield from (Row("dialogues", turn, turns[n], turns[1]) for n, turn in enumerate(turns[2::2], start=1))
    for line in (data / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Row("arithmetic", row["question"], row["answer"], row["question"])


def code(data: Path) -> Iterator[str]:
    """Programs, which must stay as they are."""
    for row in json.loads((data / "gpteacher/codegen_instruct.json").read_text(encoding="utf-8")):
        yield row["response"]


def prose(how: Callable[[str], str]) -> Callable[[str], str]:
    """The damage without code: nobody shouts in a program."""
    return lambda text: "".join(part if number % 2 else how(part) for number, part in enumerate(FENCED.split(text)))


def title(text: str) -> str:
    """Every Word With A Capital."""
    return re.sub(r"(?<![\w'’])[^\W\d_]", lambda found: found[0].upper(), text)


def starts(text: str) -> str:
    """only the first letters of sentences are missing. names such as Osk stay."""
    return START.sub(lambda found: found[1] + found[2].lower(), text)


def sentence(text: str) -> str:
    """One sentence in lower case. the others stay."""
    found = SENTENCE.findall(text)
    if len(found) < 2:
        return text
    chosen = found[len(text) % len(found)]
    return text.replace(chosen, chosen.lower(), 1)


DAMAGES: dict[str, Callable[[str], str]] = {
    "lower": prose(str.lower),
    "beside": prose(str.lower),
    "upper": prose(str.upper),
    "title": prose(title),
    "starts": starts,
    "sentence": sentence,
}


@dataclass
class Score:
    """Of one kind of damage."""

    damaged: int = 0
    restored: int = 0
    kept: int = 0
    """Words that the damage left as they were."""
    spoilt: int = 0
    """Of these, changed by the truecaser."""
    wrong: Counter[str] = field(default_factory=Counter)

    def add(self, sound: str, broken: str, mended: str) -> None:
        for found in WORD.finditer(sound):
            span = slice(*found.span())
            if sound[span] != broken[span]:
                self.damaged += 1
                self.restored += mended[span] == sound[span]
            else:
                self.kept += 1
                self.spoilt += mended[span] != sound[span]
            if mended[span] != sound[span]:
                self.wrong[f"{sound[span]}->{mended[span]}"] += 1

    def merge(self, other: "Score") -> None:
        self.damaged += other.damaged
        self.restored += other.restored
        self.kept += other.kept
        self.spoilt += other.spoilt
        self.wrong.update(other.wrong)


def held_out(group: str) -> bool:
    """The same tenth on every machine."""
    return hashlib.sha256(group.encode()).digest()[0] < 26


def split(rows: Iterator[Row]) -> tuple[list[str], list[Row]]:
    """(what teaches, what is held out). Damage means something only where the writer's own capitals are sound."""
    texts = list({row.text: row for row in rows if len(WORD.findall(row.text)) >= 3}.values())
    held = [row for row in texts if held_out(row.group) and damage(row.text) is None]
    # Every letter must keep its place.
    held = [row for row in held if len(row.text.upper()) == len(row.text) == len(row.text.lower())]
    return [row.text for row in texts if not held_out(row.group)], held


def restored(truecaser: Truecaser, held: Sequence[Row]) -> dict[tuple[str, str], Score]:
    """By damage and source."""
    scores: dict[tuple[str, str], Score] = {}
    for kind, how in DAMAGES.items():
        for row in held:
            broken = how(row.text)
            if broken != row.text and (kind != "beside" or row.beside):
                mended, _ = truecaser.restore(broken, [row.beside] if kind == "beside" else ())
                scores.setdefault((kind, row.source), Score()).add(row.text, broken, mended)
    return scores


def changed(truecaser: Truecaser, texts: Sequence[str]) -> tuple[Score, list[tuple[str, str]]]:
    """What the truecaser does to sound texts: the words that it changed, the texts before and after."""
    pairs = [(text, mended) for text in texts if (mended := truecaser.restore(text)[0]) != text]
    score = Score(kept=sum(len(WORD.findall(text)) for text in texts))
    for text, mended in pairs:
        one = Score()
        one.add(text, text, mended)
        score.spoilt += one.spoilt
    return score, pairs


def learn_many(count: int) -> None:
    """Learn from so many made-up conversations of eighty words, one word in twenty never seen before."""
    chance = random.Random(0)
    common = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(2, 9))) for _ in range(20_000)]
    counts, began = FormCounts(), time.process_time()
    for number in range(count):
        words = chance.choices(common, k=80)
        letters = chr(97 + number % 26) + chr(97 + number // 26 % 26)
        words[::20] = [f"N{letters}{chance.choice(common)}" for _ in range(4)]
        counts.add(f"So {' '.join(words)}.")
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(f"{count} conversations: {seconds:.0f} s, at most {peak:.0f} MiB, {len(counts)} words, {counts.pruned} pruned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--conversations", type=int, default=0)
    parser.add_argument("--errors", action="store_true", help="tell what came back otherwise than it was")
    chosen = parser.parse_args()
    if chosen.conversations:
        learn_many(chosen.conversations)
        return
    taught, held = split(read(chosen.data))
    words = sum(len(WORD.findall(text)) for text in taught)
    began = time.process_time()
    truecaser = Truecaser.learn(taught)
    say(f"learnt from {words} words, {words / (time.process_time() - began):.0f} a second")
    say(f"pickled: {len(pickle.dumps(truecaser)) / 2**20:.1f} MiB")
    sources = sorted({row.source for row in held})
    say(f"{'damage':10}" + "".join(f"{source:>14}" for source in [*sources, "all", "spoilt"]))
    began = time.process_time()
    scores = restored(truecaser, held)
    seconds = time.process_time() - began
    pooled = Score()
    for kind in DAMAGES:
        every = Score()
        ones = [scores.get((kind, source), Score()) for source in sources]
        for score in ones:
            every.merge(score)
        shares = [score.restored / max(1, score.damaged) for score in ones]
        line = "".join(f"{share:14.2%}" for share in [*shares, every.restored / every.damaged])
        say(f"{kind:10}{line}{every.spoilt / (every.damaged + every.kept):14.3%}")
        if kind != "beside":
            pooled.merge(every)
        if chosen.errors:
            say("    " + " ".join(f"{word}:{count}" for word, count in every.wrong.most_common(60)))
    say(f"all but beside: {pooled.restored / pooled.damaged:.2%} of {pooled.damaged} tokens")
    say(f"restoring and comparing: {(pooled.damaged + pooled.kept) / seconds:.0f} words a second")
    for name, group in (("held out", [row.text for row in held]), ("code", list(code(chosen.data)))):
        began = time.process_time()
        score, pairs = changed(truecaser, group)
        rate = score.kept / (time.process_time() - began)
        share = score.spoilt / score.kept
        found = f"{score.spoilt} of {score.kept} words changed ({share:.4%}), in {len(pairs)} texts"
        say(f"sound, {name}: {found}; {rate:.0f} a second")
        for text, mended in pairs if chosen.errors else ():
            place = next(i for i, (a, b) in enumerate(zip(text, mended, strict=True)) if a != b)
            say(f"    {text[max(0, place - 50) : place + 40]!r}")


if __name__ == "__main__":
    main()
