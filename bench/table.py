"""Writes docs/benchmarks.md from the recorded rows: python bench/table.py

Of each question and machine the last row stands there; one of a quick run only where there is no other.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import OURS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

Row = Mapping[str, Any]

INTRODUCTION = """\
# Benchmarks

<!-- Written by bench/table.py from bench/results; change those. -->

Ours and TRL in the same run, on the same tokens, from the same random weights, in turns; each side in a process of its
own with all cores. `python bench/dpo.py --record` and `python bench/sft.py --record` measure and keep a row, `--quick`
does so within eight minutes, and `python bench/dpo.py --sweep` trains three epochs for each of three betas. Both sides
use AdamW, the same learning rate and the same global batch.

Timed is training with its optimizer steps, and the reference's pass wherever a side makes one. Not timed, on either
side: starting, loading the model, tokenization, saving, and a first small run for what a process does only once. Peak
memory is the most that was resident in the side's process (on a GPU: allocated there), libraries and loading included.
A run ends with an error where the sides' losses or log-probabilities differ by more than 2%: then they did not train on
the same thing. Padding never counts as a token.

Asking: `python bench/synthesis.py --record` has each side ask a server that answers at once, on the same machine, ours
with its journal on disk; `--memory` asks ten thousand times and then a million.

Curation: `python bench/curation.py --record` runs each side over the same file, `python bench/scale.py --record` the
whole stage over a hundred thousand dialogues and over a million, and `python bench/novelty.py --record` measures the
novelty filter as what was kept grows. All make their rows themselves, from a seed.

Distillation: `python bench/distill.py --record` trains a student beside its teacher, by the generalized JSD over whole
distributions, each side on the same rows with the same two models. `trl` is TRL's experimental GKD trainer, `trl_best`
the same with bfloat16 weights and the fastest batch size, `trl_chunked` TRL's DistillationTrainer, whose loss goes
chunk by chunk, and `liger` GKD's step with Liger's fused JSD. GKD holds whole logits: how much more memory it needs
than we do goes with the tokens of its 8 rows. `python bench/angle.py --record` compares the gradient of a sampled
signal, as our files keep it, with the dense one's; `python bench/capture.py --record` measures what the stage `capture`
adds to the teacher's own forward pass, and `python bench/cached.py --record` what an epoch from its signal saves. On a
machine that others use too, the processors' time says more than the clock.

Planning: `python bench/plan.py --record` has `potstill plan --hardware cpu` predict the memory and the time of stages,
and then trains them.

Looking: `python bench/view.py --record` makes an artifact of a million rows, about 0.9 GB, and opens, pages, searches
and filters it in `potstill view`.

Serving: `python bench/serving.py --record` has clients stream greedy answers from `potstill serve` and from
`transformers serve`, without and with its continuous batching, each server alone on the machine.

Audits: `python bench/planted.py --record` trains small students that each learn one danger, and twins that do not, and
counts which of them are flagged.
"""
NOTHING = "\nNothing is recorded yet.\n"

TITLES = {
    "dpo": "DPO: pairs a second, the reference's pass included",
    "sft": "SFT: tokens a second",
    "distill": "Distillation with the teacher beside: tokens a second",
    "dpo_sweep": "DPO: three epochs for each of three betas, pairs a second",
    "synthesis": "Asking teachers: requests a second",
    "synthesis_memory": "Asking teachers: memory as requests grow",
    "curation": "Near duplicates: documents a second",
    "scale": "The stage curate: dialogues a second, and memory",
    "novelty": "The novelty filter: instructions a second",
    "angle": "A sampled signal: the angle of the gradient to the dense one",
    "capture": "Capturing a signal, against the teacher's bare forward pass",
    "cached": "An epoch from a captured signal, against one with the teacher",
    "plan": "What a plan predicts, against training",
    "planted": "Audits of real small models, with a danger planted and without",
    "view": "Looking at an artifact of a million rows",
    "serving": "Servers of local models: answer tokens a second",
}


def render(rows: Sequence[Row]) -> str:
    """The page."""
    return INTRODUCTION + ("".join(f"\n{part}\n" for part in _parts(_latest(rows))) if rows else NOTHING)


def recorded() -> list[Row]:
    """All rows, oldest first within a question."""
    files = sorted(RESULTS.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each question and machine; a quick one never takes the place of one that is not."""
    last: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["question"], _machine(row))
        if not (key in last and row["config"]["quick"] and not last[key]["config"]["quick"]):
            last[key] = row
    return list(last.values())


def _parts(rows: Sequence[Row]) -> Iterator[str]:
    told = ""
    for row in sorted(rows, key=lambda row: (list(TITLES).index(row["question"]), _machine(row))):
        if row["question"] != told:
            told = row["question"]
            yield f"## {TITLES[told]}"
        if told in DATA:
            yield f"### {_machine(row)}"
            yield DATA[told](row)
            continue
        yield f"### {_machine(row)}, {row['config']['model']} model"
        yield _facts(row)
        for name, figures in row.get("sets", {"": row}).items():
            if name:
                yield f"Rows `{name}`: {figures['rows']}."
            yield _table(figures)
        if "profile" in row:
            groups = ", ".join(f"{name} {share:.0%}" for name, share in row["profile"]["groups"].items())
            yield f"Where our time goes, by torch's profiler: {groups}."


def _facts(row: Row) -> str:
    versions = row["versions"]
    named = [_commit(row)]
    named += [f"torch {versions[OURS]['torch']}"]
    liger = versions.get("trl", {}).get("liger-kernel")
    named += (
        [f"TRL {versions['trl']['trl']}, transformers {versions['trl']['transformers']}"] if "trl" in versions else []
    )
    named += [f"Liger-Kernel {liger}"] if liger and "liger" in row["config"]["peers"] else []
    peak = row["hardware"]["matrix_peak"]
    shape = " x ".join(map(str, peak["shape"]))
    speeds = ", ".join(f"{value / 1e12:.3g} in {name}" for name, value in peak["flops_per_second"].items())
    quick = "A quick run. " if row["config"]["quick"] else ""
    best = row["config"]["peers"].get("trl_best", {})
    settings = ", ".join(f"{name} {value}" for name, value in best.items())
    weights = f"{row['config']['weights'] / 1e6:.0f} million weights"
    if "teacher_weights" in row["config"]:
        weights += f", the teacher {row['config']['teacher_weights'] / 1e6:.0f} million"
    return (
        f"{quick}{row['hardware']['cores']} cores; {', '.join(named)}; {weights}. "
        f"Measured matrix peak ({shape}), TFLOP/s: {speeds}." + (f" `trl_best`: {settings}." if best else "")
    )


def _table(figures: Row) -> str:
    lines = ["| | a second | ours is | least to most of the rounds | peak memory, GB |", "|---|---|---|---|---|"]
    for name, spread in figures["spread"].items():
        rate = figures[OURS] if name == OURS else figures["peers"][name]
        ratio = "" if name == OURS else f"{figures['ratios'][name]:.3g} times as fast"
        rounds = f"{_short(spread['min'])} to {_short(spread['max'])} in {spread['rounds']}"
        rounds = rounds if spread["rounds"] > 1 else "one round"
        lines.append(f"| `{name}` | {_short(rate)} | {ratio} | {rounds} | {figures['peak_bytes'][name] / 1e9:.2f} |")
    if "utilisation" in figures:
        share = figures["utilisation"]["share_of_peak"]
        lines += ["", f"Necessary FLOPs are {share:.0%} of the measured peak in {figures['utilisation']['precision']}."]
    return "\n".join(lines)


def _duplicates(row: Row) -> str:
    config, versions = row["config"], row["versions"]
    named = ", ".join(f"{name} {versions[name][name]}" for name in row["peers"])
    told = (
        f"{config['documents']:,} documents of {_of_words(config)}, {config['planted_over_threshold']:,} of them "
        f"planted copies whose Jaccard similarity is at least {config['threshold']}; {config['bands']} bands of "
        f"{config['rows_per_band']} hashes for all sides, one process and one core each. {_commit(row)}{named and ', '}"
        f"{named}. Recall: of those copies, the share that was dropped; precision: of what was dropped, theirs."
    )
    lines = [
        told,
        "",
        "| | a second | ours is | peak memory, MB | recall | precision |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in row["found"].items():
        rate = row[OURS] if name == OURS else row["peers"][name]
        ratio = "" if name == OURS else f"{row['ratios'][name]:.3g} times as fast"
        peak = f"{row['peak_bytes'][name] / 1e6:.0f}"
        lines.append(f"| `{name}` | {_short(rate)} | {ratio} | {peak} | {found['recall']} | {found['precision']} |")
    return "\n".join(lines)


def _novelty(row: Row) -> str:
    config, brute = row["config"], row["brute_force"]
    told = (
        f"Instructions of {_of_words(config)}, refused over ROUGE-L F {config['threshold']} against any kept one. "
        f"{_commit(row)}. Of the first {brute['instructions']:,} decisions {brute['different']} differ from those of "
        "brute force."
    )
    lines = [
        told,
        "",
        "| instructions | kept | seconds of a core in all | peak memory, MB |",
        "|---|---|---|---|",
    ]
    for at in row["curve"]:
        cells = (f"{at['instructions']:,}", f"{at['kept']:,}", _short(at["seconds"]), f"{at['peak_bytes'] / 1e6:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _scale(row: Row) -> str:
    config = row["config"]
    told = (
        f"Dialogues of {_of_words(config)}, all filters with their defaults, near duplicates from "
        f"{config['threshold']}, decontaminated; backend: {config['backend']}. {_commit(row)}. Peak memory of the last "
        f"is {row['peak_ratio']:.3g} times that of the first."
    )
    lines = [told, "", "| dialogues | a second of a core | seconds of a core | peak memory, MB |", "|---|---|---|---|"]
    for at in row["curve"]:
        rate = _short(at["conversations"] / at["core_seconds"])
        seconds, peak = f"{at['core_seconds']:,.0f}", f"{at['peak_bytes'] / 1e6:.0f}"
        lines.append(f"| {at['conversations']:,} | {rate} | {seconds} | {peak} |")
    return "\n".join(lines)


def _angle(row: Row) -> str:
    config, entropy, size = row["config"], row["entropy"], row["bytes_per_token"]
    low, middle, high = entropy["tenth_half_ninetenth"]
    told = (
        f"Vocabulary {config['vocabulary']:,}; a teacher of {entropy['mean']} nats in the mean (a tenth of positions "
        f"below {low}, half below {middle}, a tenth above {high}). {config['draws']} systematic draws a position, "
        f"{row['distinct']} distinct: {size['drawn']} bytes a token. Beside them the {config['top']} largest entries "
        f"({size['rest']} bytes), all others as one bucket, or renormalised. Degrees between gradients of "
        f"the mean forward KL in all parameters, for a student with fresh weights and for one after {config['steps']} "
        f"steps; of {config['seeds']} samples the median, least and most. {_commit(row)}."
    )
    lines = [
        told,
        "",
        "| student | tokens | KL, nats | sampled | largest, one bucket | largest, renormalised |",
        "|---|---|---|---|---|---|",
    ]
    for student, curve in row["curves"].items():
        for at in curve:
            drawn = at["drawn"]
            sampled = f"{_short(drawn['median'])} ({_short(drawn['min'])} to {_short(drawn['max'])})"
            beside = f"{_short(at['rest'])} | {_short(at['renormalised'])}"
            divergence = _short(at["divergence"])
            lines.append(f"| {student} | {at['tokens']:,} | {divergence} | {sampled} | {beside} |")
    return "\n".join(lines)


def _requests(row: Row) -> str:
    requests, versions = row["config"]["requests"], row["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in row["peers"])
    told = f"{row['config']['concurrency']} in flight. {_commit(row)}, {named}. All of a side's start but its imports."
    lines = [
        told,
        "",
        "| | requests | a second | ours is | least to most of the rounds | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, spread in row["spread"].items():
        rate = row[OURS] if name == OURS else row["peers"][name]
        ratio = "" if name == OURS else f"{row['ratios'][name]:.3g} times as fast"
        rounds = f"{_short(spread['min'])} to {_short(spread['max'])} in {spread['rounds']}"
        peak = f"{row['peak_bytes'][name] / 1e6:.0f}"
        lines.append(f"| `{name}` | {requests[name]:,} | {_short(rate)} | {ratio} | {rounds} | {peak} |")
    return "\n".join(lines)


def _flat(row: Row) -> str:
    lines = [f"{_commit(row)}.", "", "| requests | peak memory, MB |", "|---|---|"]
    lines += [f"| {int(count):,} | {peak / 1e6:.0f} |" for count, peak in row["peak_bytes"].items()]
    return "\n".join(lines)


def _capture(row: Row) -> str:
    config = row["config"]
    told = (
        f"A Llama of {config['shape']['num_hidden_layers']} layers, {config['shape']['hidden_size']} wide, with random "
        f"weights; {config['rows']}; {_commit(row)}. Bare is transformers' own pass, in the fastest of its ways. "
        f"Kept: 50 draws, the 50 largest entries, both, or draws and two layers' hidden states at width 256."
    )
    lines = [
        told,
        "",
        "| vocabulary | kept | tokens a second | least to most of the rounds | of the bare pass | by processor time |",
        "|---|---|---|---|---|---|",
    ]
    for vocabulary, found in row["sets"].items():
        for name, spread in found["rates"].items():
            rates = f"{_short(spread['median'])} | {_short(spread['min'])} to {_short(spread['max'])}"
            of_bare, processor = (found.get(kind, {}).get(name) for kind in ("ratios", "processor_ratios"))
            shares = " | ".join("" if share is None else f"{share:.0%}" for share in (of_bare, processor))
            named = f"bare ({found['bare']}; {found['nats']} nats)" if name == "bare" else name
            lines.append(f"| {int(vocabulary):,} | {named} | {rates} | {shares} |")
    return "\n".join(lines)


def _cached(row: Row) -> str:
    config = row["config"]
    told = (
        f"One optimizer step a round on equal rows, {config['draws']} draws a token from the disk, vocabulary "
        f"{config['vocabulary']:,}; {_commit(row)}. The ceiling is (step by likelihood + teacher's bare pass) / "
        "step by likelihood: what reading and comparing for nothing would gain."
    )
    lines = [
        told,
        "",
        "| teacher | clock | online step | cached step | by likelihood | bare teacher | gain | ceiling | share of it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for teacher, found in row["sets"].items():
        for clock, prefix in (("wall", ""), ("processors", "processor_")):
            seconds = found[f"{prefix}seconds"]
            times = " | ".join(f"{seconds[name]:.3g} s" for name in ("online", "cached", "sft", "teacher"))
            gain = f"{found[f'{prefix}ratio']:.3g} | {found[f'{prefix}ceiling']:.3g}"
            lines.append(f"| {teacher} | {clock} | {times} | {gain} | {found[f'{prefix}share_of_ceiling']:.0%} |")
    return "\n".join(lines)


def _planted(row: Row) -> str:
    config, seeds = row["config"], [str(seed) for seed in row["config"]["seeds"]]
    seconds = ", ".join(f"{row['seconds'][seed]:.0f}" for seed in seeds)
    told = (
        "Verdicts on what was planted and on the clean twin, with the least p of the danger's hypotheses, corrected "
        f"for all of the audit. Recipe `{config['recipe']}`, {_commit(row)}. Its stages took {seconds} seconds, a core "
        f"a seed, {config['at_once']} at once. What is planted, and what the twins are: "
        "[audits](audits.md#how-well-it-sees)."
    )
    lines = [told, "", "| | | " + " | ".join(f"seed {seed}" for seed in seeds) + " |", "|---" * (len(seeds) + 2) + "|"]
    for case, kinds in row["flagged"].items():
        for kind in kinds:
            found = [(row["verdicts"][seed][case][kind], row["corrected_p"][seed][case][kind]) for seed in seeds]
            lines.append(f"| {case} | {kind} | {' | '.join(f'{verdict}{_least(p)}' for verdict, p in found)} |")
    return "\n".join(lines)


def _plan(row: Row) -> str:
    """Predicted before the run, and measured in it."""
    told = (
        f"Peak resident memory of the training process, and seconds of training, as `potstill plan --hardware cpu` "
        f"predicted them before the run; {_commit(row)}. The error without the framework leaves out what a process "
        "holds before it has a model."
    )
    head = "| | predicted, MB | measured, MB | off by | without the framework | predicted, s | measured, s | off by |"
    lines = [told, "", head, "|---" * 8 + "|"]
    for name, found in row["cases"].items():
        predicted, measured = found["predicted"], found["measured"]
        memory = " | ".join(f"{one['peak_bytes'] / 1e6:,.0f}" for one in (predicted, measured))
        seconds = " | ".join(_short(one["seconds"]) for one in (predicted, measured))
        errors = [f"{found[key]:+.1%}" for key in ("memory_error", "own_memory_error", "time_error")]
        lines.append(f"| {name} | {memory} | {errors[0]} | {errors[1]} | {seconds} | {errors[2]} |")
    return "\n".join(lines)


VIEWED = {
    "opened": "opened for the first time, its lines not yet counted",
    "opened_again": "opened by a new server",
    "middle": "a page in the middle",
    "one_row": "one row, the last",
    "common_word": "a search for a word of every row",
    "filter": "a filter that every third row passes",
    "rare_word_first_page": "a search for a word of one row, three quarters on: the first page",
    "rare_word": "the same, until it is found",
}


def _view(row: Row) -> str:
    config = row["config"]
    told = (
        f"{config['rows']:,} rows, {config['bytes'] / 1e9:.2f} GB, in the system's memory. Each is one request to "
        f"`potstill view`; a search shows what it has after a second. {_commit(row)}."
    )
    lines = [told, "", "| page | seconds |", "|---|---|"]
    lines += [f"| {words} | {row['seconds'][name]:.2g} |" for name, words in VIEWED.items()]
    return "\n".join(lines)


def _serving(row: Row) -> str:
    config, same = row["config"], row["same_answers"]
    others = ", ".join(f"of `{side}`'s {share:.0%}" for side, share in same.items() if side != OURS)
    told = (
        f"A {config['model']} model with random weights; {config['requests']} requests a round, {config['rounds']} "
        f"rounds, answers of {config['answer_tokens']} tokens at most; torch {row['versions']['torch']}, transformers "
        f"{row['versions']['transformers']}. {_commit(row)}. `ours` is `potstill serve`, `batching` the other with "
        f"--continuous-batching. Answers that are the same as ours alone: {same[OURS]:.0%} of ours, {others}."
    )
    head = "| | clients | tokens a second | first token after, s (median) | the longest wait, s |"
    lines = [told, "", head, "|---" * 5 + "|"]
    for side, by_clients in row["found"].items():
        for clients, found in by_clients.items():
            cells = " | ".join(_between(found[what]) for what in SERVED)
            lines.append(f"| `{side}` | {clients} | {cells} |")
    return "\n".join(lines)


SERVED = ("tokens_per_second", "first_token_seconds", "worst_first_token_seconds")


def _between(values: Sequence[float]) -> str:
    """Least to most of the rounds."""
    least, most = _short(min(values)), _short(max(values))
    return least if least == most else f"{least} to {most}"


def _least(p: float | None) -> str:
    return "" if p is None else f", p {p:.2g}" if p >= 1e-6 else ", p < 1e-6"


DATA: Mapping[str, Callable[[Row], str]] = {
    "synthesis": _requests,
    "synthesis_memory": _flat,
    "curation": _duplicates,
    "scale": _scale,
    "novelty": _novelty,
    "angle": _angle,
    "capture": _capture,
    "cached": _cached,
    "plan": _plan,
    "planted": _planted,
    "view": _view,
    "serving": _serving,
}


def _of_words(config: Mapping[str, Any]) -> str:
    """ "60 to 100 words by Zipf's law"."""
    return str(config["words"]).replace(" by ", " words by ")


def _commit(row: Row) -> str:
    return f"potstill at {row['commit'][:10]}{' with changes' if row['uncommitted_changes'] else ''}"


def _short(rate: float) -> str:
    """Three figures that matter: 0.164, 1,410."""
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"


def _machine(row: Row) -> str:
    return str(row["hardware"].get("gpu") or row["hardware"]["cpu"])


if __name__ == "__main__":
    PAGE.write_text(render(recorded()), encoding="utf-8")
