"""An evaluation of local models that takes its time, to be killed: `python slow_evaluation.py RECIPE OUT SECONDS`.

Few rows are decoded or scored at once, and every step waits for so many seconds.
"""

import sys
import time
from collections import deque
from pathlib import Path

from potstill.recipe import load_recipe
from potstill.runs.pipeline import run
from potstill.teachers import local
from potstill.training import decoding
from potstill.training.decoding import Batch, Row

if __name__ == "__main__":
    recipe, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    local.MOST_ROWS = decoding.MOST_ROWS = 4
    local.SCORE_ROWS, local.SCORE_TOKENS = 6, 60
    step, keep = Batch.step, local.Spool.keep

    def slow(self: Batch, waiting: deque[Row]) -> list[Row]:
        time.sleep(seconds)
        return step(self, waiting)

    Batch.step = slow  # type: ignore[method-assign]
    run(load_recipe(str(recipe)), out)
