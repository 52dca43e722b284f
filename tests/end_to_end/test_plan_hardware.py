"""What `plan --hardware cpu` predicts before a run, against real training; bench/plan.py has the whole list."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_plan", BENCH / "plan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_plan"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["sft-5m", "sft-lora-60m", "dpo-5m", "distill-60m"])
def test_memory_is_as_predicted_before_the_run(name: str, bench: ModuleType) -> None:
    """Time is not judged where other tests run beside this one: `python bench/plan.py` on an idle machine does."""
    found = bench.compare(name, bench.CASES[name], fewer=3)
    assert abs(found["memory_error"]) <= bench.MEMORY_TOLERANCE, found
    if os.environ.get("POTSTILL_IDLE"):
        assert abs(found["time_error"]) <= bench.TIME_TOLERANCE, found
    assert found["measured"]["facts"]["micro_batch_tokens"] == found["predicted"]["settings"]["micro_batch_tokens"]
