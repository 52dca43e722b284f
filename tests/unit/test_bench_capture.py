"""The benchmarks of captures and cached epochs, in small: what they measure, and the rows that come of it."""

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

VOCABULARY = 1600


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, in small."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    module = importlib.import_module("capture")
    monkeypatch.setattr(module, "LENGTH", 24)
    yield module
    for name in ("capture", "cached", "table"):
        sys.modules.pop(name, None)


def test_a_teacher_is_as_sharp_as_is_said(bench: Any) -> None:
    model = bench.build("tiny", VOCABULARY, torch.device("cpu"), nats=2.0)
    tokens = torch.randint(0, VOCABULARY, (16, 24))
    with torch.no_grad():
        entropy = bench._entropy(model(input_ids=tokens).logits.float()).mean()
    assert float(entropy) == pytest.approx(2.0, abs=0.5)


def test_all_sides_of_a_capture_are_measured_and_told(bench: Any) -> None:
    chosen = argparse.Namespace(shape="tiny", device="cpu", rounds=2, profile=False)
    found = bench.measure(chosen, VOCABULARY)
    assert found["rates"].keys() == {"bare", "draws", "top", "both", "hidden"}
    assert found["ratios"].keys() == found["processor_ratios"].keys() == found["rates"].keys() - {"bare"}
    assert 1.0 < found["nats"] < 3.5
    table = importlib.import_module("table")
    config = {"shape": bench.SHAPES["tiny"], "rows": "rows", "quick": False}
    told = table._capture({"config": config, "commit": "c" * 40, "uncommitted_changes": False, "sets": {"1600": found}})
    assert told.count("| 1,600 |") == 5


def test_the_ceiling_of_a_cached_epoch_by_hand(bench: Any) -> None:
    """Steps of 3 seconds and a teacher of 4, twice: at best 7 / 3 times as fast."""
    seconds = {"online": 7.5, "cached": 3.2, "sft": 3.0, "teacher": 4.0}
    pairs = {name: [(value, 2 * value)] * 2 for name, value in seconds.items()}
    found = importlib.import_module("cached")._figures(pairs, 100)
    assert found["ceiling"] == found["processor_ceiling"] == pytest.approx(7 / 3, rel=1e-3)
    assert found["ratio"] == pytest.approx(7.5 / 3.2, rel=1e-3)
    assert found["share_of_ceiling"] == pytest.approx(7.5 / 3.2 / (7 / 3), rel=1e-3)
    assert found["processor_seconds"]["cached"] == pytest.approx(6.4)
