"""Products of shapes that do not come again are let go: what a process keeps on a CPU under `environment.MEMORY`."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch

from potstill.environment import MEMORY
from potstill.runs.launch import child_environment

SHAPES = 300
CODE = f"""
import json, psutil, torch
torch.set_num_threads(1)
weight = torch.nn.Linear(64, 64).to(torch.bfloat16)
with torch.no_grad():
    weight(torch.ones(400, 64, dtype=torch.bfloat16))
    before = psutil.Process().memory_info().rss
    for rows in range(401, 401 + {SHAPES}):
        weight(torch.ones(rows, 64, dtype=torch.bfloat16))
print(json.dumps(psutil.Process().memory_info().rss - before))
"""


def grown(told: Mapping[str, str]) -> int:
    """Bytes that a process grows by, over products of as many shapes."""
    plain = {name: value for name, value in child_environment(()).items() if name not in MEMORY}
    done = subprocess.run([sys.executable, "-c", CODE], env={**plain, **told}, capture_output=True, check=True)
    return int(json.loads(done.stdout))


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor has no products in bfloat16 that oneDNN makes",
)
def test_shapes_that_do_not_come_again_take_no_memory() -> None:
    kept, let_go = grown({}), grown(MEMORY)
    assert kept > 50 << 20, "oneDNN keeps little of its own accord: then the limits may go"
    assert let_go < kept / 2


def test_what_the_user_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.environment import prepare

    for name in MEMORY:
        monkeypatch.setenv(name, "7")
    prepare()
    assert {os.environ[name] for name in MEMORY} == {"7"}
