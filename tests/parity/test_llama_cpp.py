"""Parity with llama.cpp: a GGUF file gives the same tokens of hard texts, and in float32 the same greedy tokens.

llama-cpp-python compiles for minutes, so it lives in an environment of its own, which holds it and nothing else.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEER = Path(__file__).with_name("llama_cpp_peer.py")
PLACES = sorted((ROOT / ".venv-llama").glob("lib/python*/site-packages/llama_cpp"))

pytest.importorskip("gguf", reason="no gguf: pip install 'potstill[gguf]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PLACES, reason="no .venv-llama: run `make llama`"),
]


def measured(folder: Path, family: str, kind: str) -> dict[str, float]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    paths = [str(ROOT / "src"), str(ROOT / "tests" / "unit"), *(str(place.parent) for place in PLACES)]
    env["PYTHONPATH"] = os.pathsep.join([*paths, env.get("PYTHONPATH", "")])
    line = [sys.executable, str(PEER), str(folder), family, kind]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "sentencepiece", "stretched"])
def test_float32_gives_the_same_greedy_tokens(tmp_path, family):
    found = measured(tmp_path, family, "f32")
    assert found["texts"] > 400  # each the same tokens in llama.cpp, or it would have ended with an error
    assert found["tokens"] >= 64
    assert found["same"] == found["tokens"]
    assert found["kl"] < 1e-6
    assert found["starts"] == 1  # exactly one start token before a chat, however llama.cpp is asked


@pytest.mark.parametrize(("kind", "most"), [("bf16", 0.01), ("q8_0", 0.01), ("q4_0", 1.0), ("q4_k_m", 1.0)])
def test_rounding_costs_what_it_says(tmp_path, kind, most):
    found = measured(tmp_path, "llama", kind)
    assert 0 < found["kl"] < most
    assert 0 < found["same"] <= found["tokens"]
