"""What stages take that ask models at hand: captures, which read, and all those that have answers written."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from potstill.estimates.base import Estimate
from potstill.estimates.measured import Pace
from potstill.estimates.models import Known
from potstill.estimates.rows import Sample
from potstill.estimates.training import OWN_BYTES
from potstill.hardware import Hardware
from potstill.runs.plan import Step
from potstill.stages.base import read_speeds
from potstill.stages.capture import CaptureConfig
from potstill.training.decoding import CACHE_BYTES, GPU_SHARE, MOST_ROWS
from potstill.training.head import CHUNK_LOGITS
from potstill.training.rehearsal import build, without_memory

OPERATIONS = 25
"""Of a layer, for one more token of every row: what is begun one after the other."""
TOKENS_A_CALL, PROMPT_SHARE = 600.0, 0.4
"""Where a stage does not say what it asks."""
BYTES_OF_DRAW, BYTES_OF_ENTRY = 0.75, 3.0
"""Of a captured signal: 50 draws take 36 bytes, as measured; a listed entry its packed number and value."""


def count_parameters(known: Known) -> float:
    """All weights, tied ones once, exactly: the model is built without memory."""
    from potstill.estimates.measured import START_SECONDS
    from potstill.training.tally import Roof

    with without_memory(Roof(1.0, 1.0, 1.0, START_SECONDS["cpu"])):
        return float(sum(p.numel() for p in build(known.config).parameters()))


def capture(step: Step, config: CaptureConfig, known: Known, sample: Sample, how: tuple[Hardware, Pace]) -> Estimate:
    """A pass of the teacher over all rows, by formula: two operations a weight and token."""
    hardware, pace = how
    text, parameters = known.config.get_text_config(), count_parameters(known)
    tables = text.vocab_size * text.hidden_size * (1 if text.tie_word_embeddings else 2)
    precision = pace.precision(config.dtype)
    width = 2 if precision == torch.bfloat16 else 4
    rows = step.expected.rows
    tokens = rows * sample.share * sample.mean
    memory = {
        "weights": (parameters - tables) * width + 4 * tables,
        "activations": 6 * 4 * config.micro_batch_tokens * max(text.hidden_size, text.intermediate_size),
        "temporary": 3 * 4 * max(256 * text.vocab_size, CHUNK_LOGITS),
        "framework": _own(hardware, pace),
    }
    loading = 4 * parameters + memory["framework"]  # it is read in float32, and narrowed then
    flops = 2 * (parameters - tables) * tokens / pace.roof.flops_per_second
    head = 2 * text.vocab_size * text.hidden_size * rows * sample.share * sample.scored
    seconds = pace.start_seconds + pace.factor * (flops + head / pace.roof.wide_flops_per_second)
    each = BYTES_OF_DRAW * config.draws + BYTES_OF_ENTRY * config.top
    each += len(config.layers) * (config.width or text.hidden_size)
    disk = {"signals": rows * sample.share * sample.scored * each}
    settings = {"micro_batch_tokens": config.micro_batch_tokens}
    return _estimate(step, memory, loading, seconds, how, round(tokens), disk, settings, sample.said)


@dataclass(frozen=True)
class Work:
    """What a stage has of one model."""

    calls: float
    read: float
    """Tokens of prompts, and of texts that are scored without a call."""
    written: float

    @property
    def tokens_per_call(self) -> float:
        return (self.read + self.written) / max(1.0, self.calls)


def answers(step: Step, known: Mapping[str, Known], how: tuple[Hardware, Pace], workspace: Path) -> Estimate:
    """Models at hand, one after the other, each with its part of what the stage asks."""
    hardware, pace = how
    worst, loading, seconds = dict[str, float](), 0.0, pace.start_seconds
    speeds = {name: one for stage in read_speeds(workspace).values() for name, one in stage.items()}
    works = {name: _work(step, name, len(known)) for name in known}
    width = 2 if hardware.device.kind == "cuda" else 4
    for name, one in known.items():
        work, parameters = works[name], count_parameters(one)
        memory, together = _memory(one, width * parameters, work, how)
        if sum(memory.values()) > sum(worst.values()):
            worst, loading = memory, memory["weights"] + memory["framework"]
        measured = speeds.get(name)
        if hardware.device.here and measured and measured.seconds and measured.device == hardware.device.kind:
            seconds += work.written / (measured.tokens / measured.seconds)
            # What was measured of answers has the reading of their prompts in it; what is scored alone was never timed.
            seconds += 0.0 if work.calls else _reading(parameters, work, width, pace)
            continue
        seconds += _reading(parameters, work, width, pace)
        seconds += _writing(one, parameters, work.written, together, width, pace)
    total = sum(work.read + work.written for work in works.values())
    calls = sum(work.calls for work in works.values())
    said = "" if step.expected.calls_range or not calls else f"{step.name} takes {total / calls:,.0f} tokens a call"
    return _estimate(step, worst, loading, seconds, how, round(total), {}, {}, said and f"{said}, prompts with them")


def _work(step: Step, name: str, models: int) -> Work:
    """Of all that a stage asks, a model's own: by what each purpose asks whom, or else by equal shares."""
    expected = step.expected
    links = [link for link in step.entry.links if _asks(link.field)]
    if not expected.parts and (expected.calls or not expected.tokens):
        shares = max(1, sum(len(link.models) or bool(link.stage) for link in links))
        calls = expected.calls / shares if expected.calls else float(expected.rows)
        tokens = expected.tokens / shares or TOKENS_A_CALL * calls
        read = tokens * (expected.prompt_share if expected.tokens else PROMPT_SHARE)
        return Work(calls, read, tokens - read)
    askers = Counter(link.field for link in links for _ in link.models or [link.stage])
    fields = {link.field for link in links if name in (link.stage, *(model.name for model in link.models))}
    mine = [(part, 1.0) for part in expected.parts if part.model == name]
    mine += [(part, 1 / askers[part.field]) for part in expected.parts if not part.model and part.field in fields]
    scored = max(0, expected.tokens - sum(part.tokens for part in expected.parts)) / max(1, models)
    return Work(
        sum(part.calls * share for part, share in mine),
        scored + sum(part.prompt_tokens * share for part, share in mine),
        sum(part.completion_tokens * share for part, share in mine),
    )


def _memory(known: Known, weights: float, work: Work, how: tuple[Hardware, Pace]) -> tuple[dict[str, float], float]:
    """Bytes by what holds them while it answers, and how many answers are written together."""
    hardware, pace = how
    text, gpu = known.config.get_text_config(), hardware.device.kind == "cuda"
    each = 2 * text.num_hidden_layers * (2 if gpu else 4) * _kv_width(known) * work.tokens_per_call
    rows = min(MOST_ROWS, max(1.0, work.calls))
    room = hardware.device.memory_bytes // GPU_SHARE if gpu else CACHE_BYTES
    memory = {
        "weights": weights,
        "cache of what was read": min(room, rows * each) if work.calls else 0.0,
        "temporary": 3 * 4 * rows * text.vocab_size,
        "framework": _own(hardware, pace),
    }
    return memory, max(1.0, rows * min(1.0, room / max(1.0, rows * each)))


def _reading(parameters: float, work: Work, width: int, pace: Pace) -> float:
    """Seconds for prompts, and for what is scored."""
    return pace.factor * 2 * parameters * work.read / _rate(width, pace)


def _writing(known: Known, parameters: float, written: float, together: float, width: int, pace: Pace) -> float:
    """Seconds for so many tokens, in passes that each write one for every row that is written together."""
    passes, roof = written / together, pace.roof
    one_pass = max(
        width * parameters / roof.bytes_per_second,
        2 * parameters * together / _rate(width, pace),
        OPERATIONS * known.config.get_text_config().num_hidden_layers * roof.start_seconds,
    )
    return float(pace.factor * passes * one_pass)


def _rate(width: int, pace: Pace) -> float:
    return pace.roof.flops_per_second if width == 2 else pace.roof.wide_flops_per_second


def _asks(field: str) -> bool:
    return field.rpartition(".")[2] in ("model", "models", "teacher", "user", "judge")


def _kv_width(known: Known) -> int:
    """Of keys, and of values, of a layer."""
    text = known.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(head * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads))


def _own(hardware: Hardware, pace: Pace) -> float:
    return float(pace.own_bytes if hardware.device.kind == "cpu" else OWN_BYTES["cuda"])


def _estimate(
    step: Step,
    memory: Mapping[str, float],
    loading: float,
    seconds: float,
    how: tuple[Hardware, Pace],
    tokens: int,
    disk: Mapping[str, float],
    settings: Mapping[str, int],
    said: str,
) -> Estimate:
    hardware, _ = how
    price = hardware.device.usd_per_hour
    return Estimate(
        stage=step.name,
        kind=str(step.head["kind"]),
        memory={name: round(value) for name, value in memory.items()},
        peak_bytes=round(max(loading, sum(memory.values()))),
        available_bytes=hardware.device.memory_bytes,
        settings=settings,
        tokens=tokens,
        seconds=seconds,
        starting_seconds=how[1].start_seconds,
        usd=None if price is None else seconds / 3600 * price * hardware.count,
        disk={name: round(value) for name, value in disk.items()},
        assumed=(said,) if said else (),
    )
