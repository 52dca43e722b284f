"""What stages take that ask models at hand: captures, which read, and all those that have answers written."""

from collections.abc import Mapping
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


def answers(step: Step, known: Mapping[str, Known], how: tuple[Hardware, Pace], workspace: Path) -> Estimate:
    """Models at hand, one after the other, each with its part of what the stage asks."""
    hardware, pace = how
    others = sum(len(link.models) or bool(link.stage) for link in step.entry.links if _asks(link.field))
    expected = step.expected
    calls = expected.calls or expected.rows * len(known)
    share = calls / max(1, others) if expected.calls else expected.rows
    tokens = expected.tokens / max(1, others) if expected.tokens else 600.0 * share
    prompt = tokens * (expected.prompt_share if expected.tokens else 0.4)
    worst, loading, seconds, assumed = dict[str, float](), 0.0, pace.start_seconds, list[str]()
    speeds = {name: one for stage in read_speeds(workspace).values() for name, one in stage.items()}
    for name, one in known.items():
        parameters, text = count_parameters(one), one.config.get_text_config()
        width = 2 if hardware.device.kind == "cuda" else 4
        each = 2 * text.num_hidden_layers * width * _kv_width(one)
        rows = min(MOST_ROWS, max(1.0, share))
        room = hardware.device.memory_bytes // GPU_SHARE if hardware.device.kind == "cuda" else CACHE_BYTES
        memory = {
            "weights": width * parameters,
            "cache of what was read": min(room, rows * each * tokens / max(1.0, share)),
            "temporary": 3 * 4 * rows * text.vocab_size,
            "framework": _own(hardware, pace),
        }
        if sum(memory.values()) > sum(worst.values()):
            worst, loading = memory, width * parameters + memory["framework"]
        measured = speeds.get(name)
        if hardware.device.here and measured and measured.seconds and measured.device == hardware.device.kind:
            seconds += (tokens - prompt) / (measured.tokens / measured.seconds)
            continue
        together = max(1.0, rows * min(1.0, room / max(1.0, rows * each * tokens / max(1.0, share))))
        passes = (tokens - prompt) / together
        roof = pace.roof
        rate = roof.flops_per_second if width == 2 else roof.wide_flops_per_second
        one_pass = max(
            width * parameters / roof.bytes_per_second,
            2 * parameters * together / rate,
            OPERATIONS * text.num_hidden_layers * roof.start_seconds,
        )
        seconds += pace.factor * (passes * one_pass + 2 * parameters * prompt / rate)
    if not expected.calls_range:
        assumed.append(f"{step.name} writes {tokens / max(1.0, share):,.0f} tokens a call, prompts with them")
    return _estimate(step, worst, loading, seconds, how, round(tokens * len(known)), {}, {}, "; ".join(assumed))


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
