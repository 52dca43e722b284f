"""Small stages for tests of the pipeline, in modules of their own so that a child process can import them too."""

import os
from pathlib import Path

from potstill import stages

MODULES = {kind: f"fakes.{kind}" for kind in ("words", "shout", "smith", "asks", "crew")}

RECIPE = """\
name: tiny
seed: 3
variables:
  word: pot
models:
  scribe: {endpoint: "http://localhost:1/v1", name: scribe-1}
  pool:
    - {endpoint: "http://localhost:1/v1", name: one}
    - {endpoint: "http://localhost:1/v1", name: two}
stages:
  first: {kind: words, text: "${word}", count: 4}
  second: {kind: words, text: still}
  loud: {kind: shout, data: first}
  made: {kind: smith, data: loud}
  other: {kind: smith, data: [second], heat: 0.5}
  asked: {kind: asks, models: [made, scribe], suites: {one: {questions: loud}}}
"""


def install(monkeypatch):
    """Let recipes of this test, and of processes that it starts, use these stages."""
    for kind, module in MODULES.items():
        monkeypatch.setitem(stages.MODULES, kind, module)
    here = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH")))))
