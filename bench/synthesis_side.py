"""One side of bench/synthesis.py: python bench/synthesis_side.py SIDE URL COUNT. Prints seconds and peak memory.

Timed is what a user waits for once everything is imported: building what the library needs, asking, and the rows.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def questions(count: int) -> Iterator[str]:
    """What is asked, all different."""
    return (
        f"Question {i}: what would you say about the number {i} and why does it matter to you? " for i in range(count)
    )


def ours(url: str, count: int) -> tuple[float, int]:
    from potstill.records import Message
    from potstill.sources import Account, EndpointModel, Model
    from potstill.teachers.base import Request
    from potstill.teachers.client import Endpoint

    model = Model("teacher", EndpointModel(endpoint=url, name="m", concurrency=64))
    began, rows = time.perf_counter(), 0
    with Endpoint(model, Account(Path.cwd())) as teacher:
        asked = (Request((Message(role="user", content=text),), 64, 0.7) for text in questions(count))
        for reply in teacher.complete(asked):
            rows += reply.finish == "stop"
    return time.perf_counter() - began, rows


def distilabel(url: str, count: int) -> tuple[float, int]:
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    began = time.perf_counter()
    with Pipeline(name="bench") as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": text} for text in questions(count)], batch_size=500)
        llm = OpenAILLM(model="m", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": 64})
        load >> TextGeneration(llm=llm, input_batch_size=500)
    rows = pipeline.run(use_cache=False)["default"]["train"]["generation"]
    return time.perf_counter() - began, sum(bool(text) for text in rows)


def curator(url: str, count: int) -> tuple[float, int]:
    from bespokelabs import curator as library

    began = time.perf_counter()
    llm = library.LLM(
        model_name="openai/m",
        backend="litellm",
        backend_params={
            "base_url": url,
            "api_key": "none",
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 10_000_000_000,
            "max_concurrent_requests": 64,
        },
        generation_params={"max_tokens": 64},
    )
    found = llm(list(questions(count)))
    rows = getattr(found, "dataset", found)
    return time.perf_counter() - began, len(rows)


def peak_bytes() -> int:
    """The most memory that was resident in this process or in one of its children."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * 1024


if __name__ == "__main__":
    name, address, many = sys.argv[1], sys.argv[2], int(sys.argv[3])
    side = {"ours": ours, "distilabel": distilabel, "curator": curator}[name]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {
            "HOME": folder,
            "CURATOR_CACHE_DIR": folder,
            "CURATOR_DISABLE_RICH_DISPLAY": "1",
            "TELEMETRY_ENABLED": "0",
            "OPENAI_API_KEY": "none",
            "HF_HUB_OFFLINE": "1",
        }
        seconds, done = side(address, many)
    sys.stdout.write("\n" + json.dumps({"seconds": seconds, "rows": done, "peak_bytes": peak_bytes()}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # some leave threads behind
