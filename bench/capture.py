"""How fast is `capture`, against the teacher's bare forward pass on the same tokens?

    python bench/capture.py [--vocabularies 32000 128256] [--rounds 4] [--threads N] [--record]

The teacher has at least 400 million random weights, its head scaled so that its distributions have about 2 nats. Bare
is transformers' own `model(input_ids).logits` in the faster of bfloat16 and float32 and the fastest of three batch
sizes; rows are of one length, so that nothing is padded there. Ours is all that the stage does with the teacher: its
body, its head, what is taken, packed and written to the disk, at every token of the same rows. All sides take turns,
round by round.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measure import ROOT, commit, hardware, short, spread
from torch.profiler import profile
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from potstill.signals.files import Reader, Writer
from potstill.signals.rows import Header, HiddenLayer
from potstill.signals.states import sketch
from potstill.training import capture
from potstill.training.batch import Item
from potstill.training.models import choose_device, choose_precision
from potstill.training.scoring import Scorer, build_scorer

NATS = 2.0
LENGTH = 256
"""Tokens of a row."""
ROWS = {"cpu": 4, "cuda": 64}
"""Of a round."""
BATCHES = {"cpu": (1, 2, 4), "cuda": (4, 16, 64)}
"""Rows that the bare pass reads at once; the fastest counts."""
SHAPES = {
    "420m": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
    "student": {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
    "4x": {"num_hidden_layers": 9, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "10x": {"num_hidden_layers": 11, "hidden_size": 1152, "intermediate_size": 4608, "num_attention_heads": 18},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
}
HIDDEN = ((12, 256), (24, 256))
"""Layers whose states are kept, and how wide."""

Side = Callable[[Sequence[Item]], None]


def build(shape: str, vocabulary: int, device: torch.device, nats: float = NATS) -> PreTrainedModel:
    """A Llama of random weights in bfloat16, its logits as sharp as said."""
    torch.manual_seed(0)
    size = SHAPES[shape]
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        num_key_value_heads=size["num_attention_heads"] // 2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        **size,
    )
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    assert isinstance(model, PreTrainedModel)
    _sharpen(model, nats)
    return model


@torch.no_grad()
def _sharpen(model: PreTrainedModel, nats: float) -> None:
    """Scale the head until the mean entropy over some random tokens is as wanted."""
    head = model.get_output_embeddings()
    tokens = torch.randint(0, len(head.weight), (2, LENGTH), device=model.device)
    logits = model(input_ids=tokens).logits.flatten(0, 1).float()
    low, high = 1e-1, 1e3
    for _ in range(24):
        middle = (low * high) ** 0.5
        nearer = float(torch.cat([_entropy(part * middle) for part in logits.split(64)]).mean()) > nats
        low, high = (middle, high) if nearer else (low, middle)
    head.weight.mul_(low)


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def rows_of(seed: int, vocabulary: int, count: int, length: int = LENGTH) -> list[Item]:
    """Made-up text; all but each row's first token is asked for."""
    draw = np.random.default_rng(seed)
    texts = draw.integers(0, vocabulary, (count, length), dtype=np.int32)
    return [Item.text(f"{seed}-{number}", ids_L) for number, ids_L in enumerate(texts)]


def bare(model: PreTrainedModel, at_once: int) -> Side:
    """transformers' own pass."""

    @torch.no_grad()
    def side(items: Sequence[Item]) -> None:
        tokens = torch.from_numpy(np.stack([item.answers[0][0] for item in items]).astype(np.int64)).to(model.device)
        for part in tokens.split(at_once):
            model(input_ids=part, use_cache=False).logits  # noqa: B018

    return side


def ours(scorer: Scorer, folder: Path, *, top: int = 0, draws: int = 0, hidden: Sequence[tuple[int, int]] = ()) -> Side:
    """What the stage does with rows that are tokenized."""
    config = scorer.model.config
    width, vocabulary = config.hidden_size, config.vocab_size
    layers = tuple(HiddenLayer(layer, size, of=config.num_hidden_layers) for layer, size in hidden)
    header = Header(vocabulary, top, draws, 1.0, layers, False, "teacher", "tokenizer", "data")
    sketches = {layer: sketch(0, layer, width, size) for layer, size in hidden}
    asked = capture.Asked(vocabulary, top, draws, sketches=sketches)
    writer = Writer(folder, header)

    def side(items: Sequence[Item]) -> None:
        capture.capture(scorer, items, asked, writer, len(items) * LENGTH, lambda done, total: None)

    return side


def timed(side: Side, items: Sequence[Item]) -> tuple[float, float]:
    """Seconds, and seconds of processors."""
    begun, spent = time.perf_counter(), time.process_time()
    side(items)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun, time.process_time() - spent


def fastest(makers: Mapping[str, Callable[[], Side]], items: Sequence[Item]) -> tuple[str, Side]:
    """Of several ways of doing the same, by the second time of each: the processors', which others do not disturb."""
    seconds = {}
    for name, make in makers.items():
        side = make()
        side(items)
        seconds[name] = timed(side, items)[0 if torch.cuda.is_available() else 1]
    best = min(seconds, key=lambda name: seconds[name])
    sys.stderr.write(f"bare: {', '.join(f'{name} {found:.3g} s' for name, found in seconds.items())}: {best}\n")
    return best, makers[best]()


@contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    """Within this, where time goes, on standard error."""
    if not wanted:
        yield
        return
    with profile() as found:
        yield
    sys.stderr.write(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=24, max_name_column_width=44))


def measure(chosen: argparse.Namespace, vocabulary: int) -> dict[str, Any]:
    """All sides at one vocabulary."""
    device = choose_device(chosen.device)
    narrow = build(chosen.shape, vocabulary, device)
    wide = deepcopy(narrow).float()
    scorer = build_scorer(wide, choose_precision("auto", device)).narrow().eval()
    layers = narrow.config.num_hidden_layers
    hidden = [(max(1, layer * layers // HIDDEN[-1][0]), min(size, narrow.config.hidden_size)) for layer, size in HIDDEN]
    count = ROWS[device.type]
    ways = {f"bfloat16, {size} rows": lambda size=size: bare(narrow, size) for size in BATCHES[device.type]}
    with tempfile.TemporaryDirectory() as folder:
        kinds: dict[str, dict[str, Any]] = {
            "draws": {"draws": 50}, "top": {"top": 50}, "both": {"draws": 50, "top": 50},
            "hidden": {"draws": 50, "hidden": hidden},
        }  # fmt: skip
        how, plain = fastest(ways, rows_of(1, vocabulary, count))
        sides = {"bare": plain, **{name: ours(scorer, Path(folder) / name, **kind) for name, kind in kinds.items()}}
        for side in sides.values():
            side(rows_of(2, vocabulary, count))
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for number in range(chosen.rounds):
            items = rows_of(3 + number, vocabulary, count)
            for name in list(sides) if number % 2 == 0 else reversed(sides):
                seconds[name].append(timed(sides[name], items))
                sys.stderr.write(f"{vocabulary:,}, round {number + 1}: {name} {seconds[name][-1][0]:.2f} s\n")
        with profiled(chosen.profile):
            sides["draws"](rows_of(0, vocabulary, count))
        nats, size = _said(Reader(Path(folder) / "draws"))
    return {"bare": how, "nats": nats, "bytes_per_token": size, **_figures(seconds, count * LENGTH, device)}


def _said(reader: Reader) -> tuple[float, float]:
    """The mean entropy of what was kept, and its size."""
    entropies = [row.entropy for row in reader.read(reader.keys()) if row.entropy is not None]
    return short(float(np.concatenate(entropies).mean())), round(reader.bytes_per_token(), 2)


def _figures(seconds: Mapping[str, Sequence[tuple[float, float]]], amount: int, device: torch.device) -> dict[str, Any]:
    rates = {name: spread([amount / wall for wall, _ in found]) for name, found in seconds.items()}

    def ratio(name: str, clock: int) -> float:
        return short(sum(pair[clock] for pair in seconds["bare"]) / sum(pair[clock] for pair in seconds[name]))

    names = [name for name in seconds if name != "bare"]
    found: dict[str, Any] = {"rates": rates, "ratios": {name: ratio(name, 0) for name in names}}
    return found if device.type == "cuda" else found | {"processor_ratios": {name: ratio(name, 1) for name in names}}


def main() -> None:
    """Measure, print the row, keep it where that is asked for."""
    parser = argparse.ArgumentParser(description="Capture against the bare forward pass")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_256])
    parser.add_argument("--shape", choices=SHAPES, default="420m")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--profile", action="store_true", help="one more round of draws under torch's profiler")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    count = ROWS[choose_device(chosen.device).type]
    sets = {f"{vocabulary}": measure(chosen, vocabulary) for vocabulary in chosen.vocabularies}
    row = {
        "question": "capture",
        "unit": "tokens_per_second",
        **commit(),
        "hardware": hardware(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "config": {
            "shape": {**SHAPES[chosen.shape], "name": chosen.shape},
            "threads": torch.get_num_threads(),
            "rows": f"{count} rows of {LENGTH} tokens a round, {chosen.rounds} rounds, every token asked for",
            "quick": False,
        },
        "sets": sets,
    }
    if chosen.record:
        with (ROOT / "bench" / "results" / "capture.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
