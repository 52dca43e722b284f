"""How far does a sampled signal of 40 bytes a token turn the student's gradient away from the dense one?

    python bench/angle.py [--bytes 40] [--entropy 2.0] [--record]

The teacher is a transformer of two layers, width 256, with random weights, so that every context has a distribution of
its own; Zipf's law is added to its logits, it is surer at some positions than at others, and its scale makes the mean
entropy what is asked for. The text is tokens by Zipf's law. The student is another model: two layers, width 128, its
head tied to its embeddings. The gradient is that of the mean forward KL in all its parameters, over the first 64 to
16,384 tokens; once with fresh weights, once after some steps of distillation on other text. Products round their
inputs to bfloat16, sums and softmaxes are in float32, the same for all. Signals are written to disk in our format and
read back; bytes are those of the files. Beside the sample: the k largest entries, k such that the files are of equal
size, once with all others as one bucket, once renormalised on both sides.
"""

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import ROOT, commit, hardware, short, spread
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.signals.draws import LEAST, take, uniforms
from potstill.signals.files import Reader, Writer
from potstill.signals.rows import Header, RowSignal
from potstill.signals.sparse import to_sparse

VOCABULARY = 128_256
LENGTH = 256
"""Tokens of a row."""
ROWS, OTHERS = 64, 32
"""Rows that are measured, 16,384 tokens, and rows that the student is trained on."""
MARKS = (64, 256, 1024, 4096, 16_384)
ZIPF = 1.6
"""How much of Zipf's law is in the logits: so much that the mean distribution falls about as 1 over the rank."""
SURENESS = 0.4
"""The standard deviation of the logarithm of a position's scale."""
CHUNK = (1 << 23) // VOCABULARY


def transformer(seed: int, width: int, spread: float) -> LlamaForCausalLM:
    """Two layers, tied head, weights normal with this standard deviation."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH, initializer_range=spread,
        tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Teacher:
    """A random transformer that speaks by Zipf's law."""

    def __init__(self) -> None:
        self._model = transformer(seed=1, width=256, spread=0.15).eval()
        chance = torch.Generator().manual_seed(2)
        self._gate_D = torch.randn(256, generator=chance) * SURENESS / math.sqrt(256)
        self._zipf_V = -ZIPF * torch.log(torch.arange(VOCABULARY) + 2.7)
        self.scale = 1.0

    @torch.no_grad()
    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """End to end."""
        parts = [self._model.base_model(part).last_hidden_state for part in tokens_BT.split(16)]
        return torch.cat(parts).flatten(0, 1)

    def logits(self, hidden_ND: Tensor) -> Iterator[Tensor]:
        """Chunk by chunk."""
        weight_VD = self._model.get_output_embeddings().weight.detach()
        for hidden_CD in hidden_ND.split(CHUNK):
            scale_C1 = self.scale * (hidden_CD @ self._gate_D).exp()[:, None]
            yield (hidden_CD * scale_C1) @ weight_VD.t() + self._zipf_V

    def calibrate(self, hidden_ND: Tensor, entropy: float) -> None:
        """Find the scale by bisection."""
        low, high = 0.01, 100.0
        for _ in range(14):
            self.scale = math.sqrt(low * high)
            found = torch.cat([take(logits).entropy_C for logits in self.logits(hidden_ND)]).mean()
            low, high = (self.scale, high) if found > entropy else (low, self.scale)


def text(rows: int) -> Tensor:
    """By Zipf's law."""
    shares_V = 1 / (torch.arange(VOCABULARY) + 2.7)
    chance = torch.Generator().manual_seed(3)
    return torch.multinomial(shares_V, rows * LENGTH, replacement=True, generator=chance).view(rows, LENGTH)


@dataclass(frozen=True)
class Estimate:
    """A signal as a student's objective has it, of all positions end to end: entries, and how the others count."""

    entropy_N: Tensor
    sizes_N: Tensor
    ids_M: Tensor
    mass_M: Tensor
    kind: str
    """"drawn", "rest": the others are one bucket, or "renormalised"."""
    bytes_per_token: float
    distinct: float


def header(top: int, draws: int) -> Header:
    return Header(VOCABULARY, top, draws, 1.0, (), False, "0" * 64, "0" * 64, "0" * 64)


def capture(teacher: Teacher, hidden_ND: Tensor, top: int, draws: int, seed: int = 0) -> Estimate:
    """Through our files, and back."""
    rows = len(hidden_ND) // LENGTH
    names = [(str(number), f"{number:064x}") for number in range(rows)]
    uniforms_N = torch.from_numpy(np.concatenate([uniforms(seed, key, LENGTH) for _, key in names]))
    columns: dict[str, list[Tensor]] = {
        name: [] for name in ("entropy", "top", "logp", "rest", "ids", "counts", "sizes")
    }
    for logits_CV, uniforms_C in zip(teacher.logits(hidden_ND), uniforms_N.split(CHUNK), strict=True):
        taken = take(logits_CV, top=top, draws=draws, uniforms_C=uniforms_C)
        found = (taken.entropy_C, taken.listed_ids_CK, taken.listed_logp_CK, taken.rest_C.clamp(min=LEAST).log())
        found += (taken.drawn_ids_M, taken.counts_M, taken.sizes_C)
        for column, values in zip(columns.values(), found, strict=True):
            if values is not None:
                column.append(values)
    return kept(columns, names, header(top, draws))


def kept(columns: dict[str, list[Tensor]], names: Sequence[tuple[str, str]], form: Header) -> Estimate:
    """Written to disk and read back."""
    whole = {name: torch.cat(parts).numpy() for name, parts in columns.items() if parts}
    signals = {}
    ends = np.concatenate([[0], np.cumsum(whole["sizes"])]) if form.draws else None
    for place, name in enumerate(names):
        part = slice(place * LENGTH, (place + 1) * LENGTH)
        if ends is None:
            signals[name] = RowSignal(
                top_ids=whole["top"][part].astype(np.int32),
                top_logp=whole["logp"][part],
                rest_logp=whole["rest"][part].astype(np.float32),
                entropy=whole["entropy"][part],
            )
        else:
            entries = slice(ends[part.start], ends[part.stop])
            signals[name] = RowSignal(
                drawn_ids=whole["ids"][entries].astype(np.int32),
                drawn_counts=whole["counts"][entries].astype(np.int32),
                drawn_sizes=whole["sizes"][part].astype(np.int32),
                entropy=whole["entropy"][part],
            )
    with tempfile.TemporaryDirectory() as folder:
        Writer(Path(folder), form).add(signals)
        reader = Reader(Path(folder))
        read, size = reader.read(names), reader.bytes_per_token()
    entropy_N = joined(read, "entropy")
    if form.draws:
        ids_M, counts_M, sizes_N = (joined(read, name) for name in ("drawn_ids", "drawn_counts", "drawn_sizes"))
        distinct = len(ids_M) / len(sizes_N)
        return Estimate(entropy_N, sizes_N, ids_M, counts_M.float() / form.draws, "drawn", size, distinct)
    said = to_sparse(read, form)
    ids_M, mass_M = torch.from_numpy(said.ids_CK).flatten(), torch.from_numpy(said.mass_CK).flatten()
    sizes_N = torch.full((len(said.ids_CK),), form.top)
    return Estimate(entropy_N, sizes_N, ids_M, mass_M, "rest", size, form.top)


def joined(read: Sequence[RowSignal], name: str) -> Tensor:
    values = torch.from_numpy(np.concatenate([getattr(signal, name) for signal in read]))
    return values.long() if values.dtype == torch.int32 else values


def fitting(size: Callable[[int], float], most: float) -> int:
    """The largest number whose files take at most so many bytes a token."""
    low, high = 1, 512
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= most else (low, middle)
    return low


def slope(
    estimate: Estimate, ids_M: Tensor, mass_M: Tensor, row_M: Tensor, q_CV: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The divergence's slope in the student's logits, as f q less a few entries: f of each position, or None for 1."""
    if estimate.kind == "drawn":
        return None, mass_M
    q_M = q_CV[row_M, ids_M]
    listed_C, known_C = (torch.zeros(len(q_CV)).index_add_(0, row_M, values) for values in (mass_M, q_M))
    if estimate.kind == "renormalised":
        return torch.zeros(len(q_CV)), mass_M / listed_C[row_M] - q_M / known_C[row_M]
    share_C = (1 - listed_C).clamp(min=0) / (1 - known_C).clamp(min=1e-6)
    return 1 - share_C, mass_M - q_M * share_C[row_M]


class Gradients:
    """The dense gradient in all parameters and those of the estimates, as positions are added."""

    def __init__(self, student: LlamaForCausalLM, estimates: dict[str, Estimate]) -> None:
        self._student, self._estimates = student, estimates
        self._starts = {name: F.pad(estimate.sizes_N.cumsum(0), (1, 0)) for name, estimate in estimates.items()}
        self._parameters = list(student.base_model.parameters())
        self._weight_VD = student.get_output_embeddings().weight
        self.totals = {name: [torch.zeros_like(p) for p in self._parameters] for name in (*estimates, "dense")}
        self.divergence = 0.0
        """Summed over all positions."""

    def add(
        self, tokens_BT: Tensor, begin: int, stop: int, teacher: Callable[[int, int], Iterator[Tensor]] | None
    ) -> None:
        """These positions of the rows' tokens end to end. Without a teacher, the estimates alone."""
        first, last = begin // LENGTH, -(-stop // LENGTH)
        out_ND = self._student.base_model(tokens_BT[first:last]).last_hidden_state.flatten(0, 1)
        out_ND = out_ND[begin - first * LENGTH : stop - first * LENGTH]
        heads = {name: torch.zeros_like(self._weight_VD) for name in self.totals}
        common_VD = torch.zeros_like(self._weight_VD)
        slopes: dict[str, list[Tensor]] = {name: [] for name in self.totals}
        logits = teacher(begin, stop) if teacher else None
        for start in range(begin, stop, CHUNK):
            chunk = slice(start, min(start + CHUNK, stop))
            hidden_CD = out_ND[chunk.start - begin : chunk.stop - begin].detach()
            self._chunk(chunk, hidden_CD, next(logits) if logits else None, heads, common_VD, slopes)
        for name, parts in slopes.items():
            if not parts:
                continue
            if name != "dense" and self._estimates[name].kind == "drawn":
                heads[name] += common_VD
            shares = torch.autograd.grad(out_ND, self._parameters, torch.cat(parts), retain_graph=True)
            for total, share in zip(self.totals[name], shares, strict=True):
                total += share
            next(t for t, p in zip(self.totals[name], self._parameters, strict=True) if p is self._weight_VD).add_(
                heads[name]
            )

    @torch.no_grad()
    def _chunk(
        self, chunk: slice, hidden_CD: Tensor, logits_CV: Tensor | None, heads: dict[str, Tensor], common_VD: Tensor,
        slopes: dict[str, list[Tensor]],
    ) -> None:  # fmt: skip
        weight_VD = self._weight_VD
        q_CV = hidden_CD @ weight_VD.t()
        top_C = q_CV.amax(-1)
        torch.softmax(q_CV, -1, out=q_CV)
        logz_C = top_C - q_CV.amax(-1).log()
        common_VD += q_CV.t() @ hidden_CD
        common_CD = q_CV @ weight_VD
        if logits_CV is not None:
            torch.softmax(logits_CV, -1, out=logits_CV)
            logits_CV -= q_CV
            heads["dense"] -= logits_CV.t() @ hidden_CD
            slopes["dense"].append(-(logits_CV @ weight_VD))
            said_C = ((common_CD - slopes["dense"][-1]) * hidden_CD).sum(
                -1
            )  # the student's logits, as the teacher weighs
            entropy_C = next(iter(self._estimates.values())).entropy_N[chunk]
            self.divergence += float((logz_C - said_C - entropy_C).sum())
        for name, estimate in self._estimates.items():
            starts = self._starts[name]
            entries = slice(int(starts[chunk.start]), int(starts[chunk.stop]))
            ids_M, sizes_C = estimate.ids_M[entries], estimate.sizes_N[chunk]
            row_M = torch.arange(len(sizes_C)).repeat_interleave(sizes_C)
            factor_C, mass_M = slope(estimate, ids_M, estimate.mass_M[entries], row_M, q_CV)
            slope_CD = common_CD if factor_C is None else common_CD * factor_C[:, None]
            offsets_C = sizes_C.cumsum(0) - sizes_C
            few_CD = F.embedding_bag(ids_M, weight_VD, offsets_C, per_sample_weights=mass_M, mode="sum")
            slopes[name].append(slope_CD - few_CD)
            heads[name].index_add_(0, ids_M, hidden_CD[row_M] * mass_M[:, None], alpha=-1)
            if factor_C is not None and bool(factor_C.any()):
                heads[name] += q_CV.t() @ (hidden_CD * factor_C[:, None])

    def angles(self) -> dict[str, float]:
        """Of each estimate to the dense gradient, in degrees."""
        dense = self.totals["dense"]
        return {
            name: math.degrees(math.acos(min(1.0, dot(mine, dense) / math.sqrt(dot(mine, mine) * dot(dense, dense)))))
            for name, mine in self.totals.items()
            if name != "dense"
        }


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Summed in float64."""
    pairs = (
        (a, b)
        for x, y in zip(left, right, strict=True)
        for a, b in zip(x.flatten().split(1 << 16), y.flatten().split(1 << 16), strict=True)
    )
    return sum(float(a @ b) for a, b in pairs)


def train(student: LlamaForCausalLM, tokens_BT: Tensor, estimate: Estimate, steps: int) -> None:
    """By AdamW on the sampled signal, two rows a step, the rate rising to 1e-3 in the first half and falling again."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    size = 2 * LENGTH
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(step + 1, steps - step) / (steps / 2)
        gradients = Gradients(student, {"drawn": estimate})
        begin = step * size % tokens_BT.numel()
        gradients.add(tokens_BT, begin, begin + size, None)
        for parameter, total in zip(student.base_model.parameters(), gradients.totals["drawn"], strict=True):
            parameter.grad = total / size
        optimizer.step()


def curve(
    student: LlamaForCausalLM, tokens_BT: Tensor, estimates: dict[str, Estimate], teacher: Teacher, hidden_ND: Tensor
) -> list[dict[str, Any]]:
    """The angles after so many tokens, in degrees."""
    gradients, begin, found = Gradients(student, estimates), 0, []
    for mark in [mark for mark in MARKS if mark <= tokens_BT.numel()]:
        gradients.add(tokens_BT, begin, mark, lambda a, z: teacher.logits(hidden_ND[a:z]))
        begin = mark
        angles = gradients.angles()
        drawn = [angle for name, angle in angles.items() if name.startswith("drawn")]
        beside = {name: short(angle) for name, angle in angles.items() if not name.startswith("drawn")}
        divergence = short(gradients.divergence / mark)
        found.append({"tokens": mark, "divergence": divergence, "drawn": spread(drawn), **beside})
        say(f"{json.dumps(found[-1])}")
    return found


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Both students."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    teacher, tokens_BT = Teacher(), text(ROWS + OTHERS)
    tokens_BT = tokens_BT[ROWS - chosen.rows :]
    hidden_ND = teacher.hidden(tokens_BT)
    cut = chosen.rows * LENGTH
    teacher.calibrate(hidden_ND[cut::16], chosen.entropy)
    few_ND = hidden_ND[cut : cut + 4 * LENGTH]
    draws = fitting(lambda draws: capture(teacher, few_ND, 0, draws).bytes_per_token, chosen.bytes - 1)
    top = fitting(lambda top: capture(teacher, few_ND, top, 0).bytes_per_token, chosen.bytes - 1)
    say(f"scale {teacher.scale:.3g}, {draws} draws, top {top}")
    estimates = {f"drawn {seed}": capture(teacher, hidden_ND[:cut], 0, draws, seed) for seed in range(chosen.seeds)}
    estimates["rest"] = capture(teacher, hidden_ND[:cut], top, 0)
    estimates["renormalised"] = replace(estimates["rest"], kind="renormalised")
    other = capture(teacher, hidden_ND[cut:], 0, draws, chosen.seeds)
    drawn = estimates["drawn 0"]
    say(f"captured: {drawn.bytes_per_token:.4g} bytes a token, top-k {estimates['rest'].bytes_per_token:.4g}")
    student = transformer(seed=4, width=128, spread=0.02)
    curves = {"fresh": curve(student, tokens_BT[: chosen.rows], estimates, teacher, hidden_ND)}
    train(student, tokens_BT[chosen.rows :], other, chosen.steps)
    curves["trained"] = curve(student, tokens_BT[: chosen.rows], estimates, teacher, hidden_ND)
    tenths = torch.tensor([0.1, 0.5, 0.9])
    return {
        "question": "angle",
        "unit": "degrees",
        **commit(),
        "hardware": hardware(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "config": {
            "vocabulary": VOCABULARY,
            "draws": draws,
            "top": top,
            "seeds": chosen.seeds,
            "steps": chosen.steps,
            "quick": chosen.rows < ROWS,
        },
        "entropy": {
            "mean": short(float(drawn.entropy_N.mean())),
            "tenth_half_ninetenth": [short(value) for value in drawn.entropy_N.quantile(tenths).tolist()],
        },
        "bytes_per_token": {
            "drawn": short(drawn.bytes_per_token),
            "rest": short(estimates["rest"].bytes_per_token),
        },
        "distinct": short(drawn.distinct),
        "curves": curves,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def say(text: str) -> None:
    """To whoever waits."""
    sys.stderr.write(f"{time.monotonic() - BEGUN:5.0f} s  {text}\n")


BEGUN = time.monotonic()


def main() -> None:
    """Measure, print the row, keep it where that is asked for."""
    parser = argparse.ArgumentParser(description="The angle of a sampled gradient to the dense one")
    parser.add_argument("--bytes", type=float, default=40.0, help="a token, at most")
    parser.add_argument("--entropy", type=float, default=2.0, help="the teacher's mean, in nats")
    parser.add_argument("--seeds", type=int, default=3, help="so many samples")
    parser.add_argument("--steps", type=int, default=32, help="of distillation, for the second student")
    parser.add_argument("--rows", type=int, default=ROWS, help="of 256 tokens, to measure")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    row = measure(chosen := parser.parse_args())
    if chosen.record:
        with (ROOT / "bench" / "results" / "angle.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
