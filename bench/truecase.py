"""How much of damaged capitals does the truecaser give back, what does it change that was sound, and how fast is it?

    python bench/truecase.py [DATA] [--conversations N]

DATA is a folder of real texts (../shared/data by default). One text in ten is held out, damaged in each way, and
restored by what the others teach. A damaged token is a word whose capitals the damage changed; it is restored where it
comes back as it was. A sound token is any word of a held-out text, of code, of a list of titles, that nobody damaged.
`--conversations N` learns from N made-up conversations with an ever growing vocabulary and prints the memory it takes.
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
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from potstill.curation.truecase import FormCounts, Truecaser, damage

DATA = Path(__file__).parents[2] / "shared" / "data"
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
FENCED = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+)", re.DOTALL)
START = re.compile(r"((?:\A|[.!?]\s+|\n\n)\W{0,3})([^\W\d_])(?!['’]?[A-Z])")
SENTENCE = re.compile(r"[^.!?\n]{25,}[.!?](?=\s|\Z)")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def read(data: Path) -> Iterator[tuple[str, str, str]]:
    """(source, text, what it is held out by) of prose whose capitals are as their writers set them."""
    for row in json.loads((data / "gpteacher/roleplay_instruct.json").read_text(encoding="utf-8")):
        yield "role play", row["response"], row["response"]
    for row in json.loads((data / "format_demos/alpaca_en_demo.json").read_text(encoding="utf-8")):
        yield "instructions", row["output"], row["output"]
    for line in (data / "format_demos/c4_demo.jsonl").read_text(encoding="utf-8").splitlines():
        yield from (("web", part, part) for part in json.loads(line)["text"].split("\n"))
    for line in (data / "format_demos/wiki_demo.txt").read_text(encoding="utf-8").splitlines():
        parts = re.split(r"(?<=[a-z]\.)(?=[A-Z])", line)  # paragraphs were joined without a space
        yield from (("encyclopedia", part, part) for part in parts)
    for model in ("baselines/gpt4_1106_preview", "baselines/text_davinci_003", "vicuna-13b", "llama-2-70b-chat-hf"):
        for row in json.loads((data / f"alpaca_eval/{model}/model_outputs.json").read_text(encoding="utf-8")):
            yield "answers", row["output"], row["instruction"]
    with gzip.open(data / "hh_rlhf/harmless_base_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            turns = re.split(r"\n\n(?:Human|Assistant): ?", json.loads(line)["chosen"])
            yield from (("dialogues", turn, turns[1]) for turn in turns[2::2])
    for line in (data / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield "arithmetic", row["question"], row["question"]


def code(data: Path) -> Iterator[str]:
    """Programs, which must stay as they are."""
    for row in json.loads((data / "gpteacher/codegen_instruct.json").read_text(encoding="utf-8")):
        yield row["response"]


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


def prose(how: Callable[[str], str]) -> Callable[[str], str]:
    """The damage without code: nobody shouts in a program."""
    return lambda text: "".join(part if number % 2 else how(part) for number, part in enumerate(FENCED.split(text)))


DAMAGES: dict[str, Callable[[str], str]] = {
    "lower": prose(str.lower),
    "upper": prose(str.upper),
    "title": prose(title),
    "starts": starts,
    "sentence": sentence,
}


def compare(sound: str, broken: str, mended: str) -> tuple[int, int, int, int]:
    """(damaged tokens, of them restored, tokens left sound, of them changed)."""
    damaged = restored = kept = spoilt = 0
    for found in WORD.finditer(sound):
        span = slice(*found.span())
        if sound[span] != broken[span]:
            damaged += 1
            restored += mended[span] == sound[span]
        else:
            kept += 1
            spoilt += mended[span] != sound[span]
    return damaged, restored, kept, spoilt


def held_out(text: str) -> bool:
    """The same tenth on every machine."""
    return hashlib.sha256(text.encode()).digest()[0] < 26


def learn_many(count: int) -> None:
    """Learn from so many made-up conversations of eighty words, one word in twenty never seen before."""
    chance = random.Random(0)
    common = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(2, 9))) for _ in range(20_000)]
    counts, began = FormCounts(), time.perf_counter()
    for number in range(count):
        words = chance.choices(common, k=80)
        words[::20] = [
            f"N{chr(97 + number % 26)}{chr(97 + number // 26 % 26)}{chance.choice(common)}" for _ in range(4)
        ]
        counts.add(" ".join(words).capitalize() + ".")
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(
        f"{count} conversations: {seconds:.0f} s, {peak:.0f} MiB at most, {len(counts)} words kept, {counts.pruned} pruned"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--conversations", type=int, default=0)
    parser.add_argument("--errors", action="store_true", help="print words that were not restored")
    chosen = parser.parse_args()
    if chosen.conversations:
        learn_many(chosen.conversations)
        return
    texts = [row for row in dict.fromkeys(read(chosen.data)) if len(WORD.findall(row[1])) >= 3]
    sources = sorted({source for source, _, _ in texts})
    taught = [text for _, text, group in texts if not held_out(group)]
    began = time.perf_counter()
    truecaser = Truecaser.learn(taught)
    words = sum(len(WORD.findall(text)) for text in taught)
    say(f"learnt from {words} words, {words / (time.perf_counter() - began):.0f} a second")
    say(f"pickled: {len(pickle.dumps(truecaser)) / 2**20:.1f} MiB")
    # Damage is only meaningful where the writer's own capitals are sound, and every letter keeps its place.
    held = [(source, text) for source, text, group in texts if held_out(group) and damage(text) is None]
    held = [(source, text) for source, text in held if len(text.upper()) == len(text) == len(text.lower())]
    say(f"{'damage':10}" + "".join(f"{source:>14}" for source in [*sources, "all", "spoilt"]))
    seconds = total_words = 0.0
    pooled = [0, 0, 0, 0]
    errors: dict[tuple[str, str], int] = {}
    for kind, how in DAMAGES.items():
        sums = {source: [0, 0, 0, 0] for source in [*sources, "all"]}
        for source, text in held:
            broken = how(text)
            if broken == text:
                continue
            began = time.perf_counter()
            mended, _ = truecaser.restore(broken)
            seconds += time.perf_counter() - began
            total_words += len(WORD.findall(text))
            for name in (source, "all"):
                sums[name] = [a + b for a, b in zip(sums[name], compare(text, broken, mended), strict=True)]
            for found in WORD.finditer(text):
                span = slice(*found.span())
                if text[span] != mended[span]:
                    errors[kind, f"{text[span]}->{mended[span]}"] = (
                        errors.get((kind, f"{text[span]}->{mended[span]}"), 0) + 1
                    )
        shares = [f"{restored / max(1, damaged):14.2%}" for damaged, restored, _, _ in sums.values()]
        say(f"{kind:10}" + "".join(shares) + f"{sums['all'][3] / (sums['all'][0] + sums['all'][2]):14.3%}")
        for number in range(4):
            pooled[number] += sums["all"][number]
    say(f"all damage together: {pooled[1] / pooled[0]:.2%} of {pooled[0]} tokens restored")
    say(f"restoring: {total_words / seconds:.0f} words a second")
    sound = {"held out": [text for _, text in held], "code": list(code(chosen.data))}
    for name, group in sound.items():
        began = time.perf_counter()
        changed = [(text, mended) for text in group if (mended := truecaser.restore(text)[0]) != text]
        spoilt = sum(compare(text, text, mended)[3] for text, mended in changed)
        took = time.perf_counter() - began
        tokens = sum(len(WORD.findall(text)) for text in group)
        say(
            f"sound, {name}: {spoilt} of {tokens} tokens changed ({spoilt / tokens:.4%}), in {len(changed)} texts; {tokens / took:.0f} a second"
        )
        if chosen.errors:
            for text, mended in changed[:25]:
                place = next(i for i, (a, b) in enumerate(zip(text, mended, strict=True)) if a != b)
                say(f"    {text[max(0, place - 50) : place + 40]!r}")
    if chosen.errors:
        for kind in DAMAGES:
            worst = sorted(((n, word) for (k, word), n in errors.items() if k == kind), reverse=True)
            say(f"{kind} {sum(n for n, _ in worst)} " + " ".join(f"{word}:{n}" for n, word in worst[:60]))


if __name__ == "__main__":
    main()
