"""What libraries are told by environment variables before the first is imported, and children of signals."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SPEED = {
    # OpenMP's threads wait for each other by spinning. Without end, that makes a busy machine several times slower; not
    # at all, it halves the speed of small models on an idle one.
    "GOMP_SPINCOUNT": "20000",
}
MEMORY = {
    # oneDNN and torch's wrapper of it (ideep) keep the last 1,024 products each, half a megabyte of machine code and
    # tables a shape. No two micro-batches of ragged rows have the same shape, so that hundreds of megabytes are kept
    # which nothing reads again. One micro-batch has some tens of shapes: its layers are alike.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}
NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",  # consoledonottrack.com; vLLM and others heed it
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and with it transformers, datasets, accelerate
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",  # trackio draws with it
    "WANDB_ERROR_REPORTING": "false",  # its own crash reports; runs go there only where `track` says so
}
"""Nothing is told to anybody whom the recipe does not name."""


def prepare() -> None:
    """Set what nobody has set. Children inherit it."""
    for name, value in {**SPEED, **MEMORY, **NO_TELEMETRY}.items():
        os.environ.setdefault(name, value)


@contextmanager
def time_limit_unheard() -> Iterator[None]:
    """Within this, children are started that SIGUSR1 does not reach, nor any process of theirs.

    Schedulers send it to every process of a job some minutes before a time limit. The run alone acts on it; a launcher
    or a server would just end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
