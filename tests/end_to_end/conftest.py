"""What the end-to-end tests share: one undisturbed run of the reduced miniature a session."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import reduced


@dataclass(frozen=True)
class Calm:
    """An undisturbed run. Nobody writes in its folder: copy it, links as links."""

    folder: Path
    seconds: float
    output: str


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """Run the reduced miniature once."""
    folder = tmp_path_factory.mktemp("reduced") / "calm"
    began = time.monotonic()
    output = reduced.run(folder)
    return Calm(folder, time.monotonic() - began, output)
