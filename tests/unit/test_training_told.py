"""Before the first step a training stage says what it does, and where it goes on."""

import pytest
from training_stages import PRETRAIN, TEXTS, Bench

from potstill.errors import Stopped
from potstill.stages import pretrain


def test_it_says_what_it_does_before_the_first_step_and_from_which_it_goes_on(tmp_path):
    bench = Bench(tmp_path)
    data = bench.data("texts", "texts", TEXTS)
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        bench.run(pretrain, "base", PRETRAIN, data, stopping=lambda: next(asked))
    first = bench.told[: bench.told.index("steps 1")]
    assert first == [
        "reading rows and counting tokens",
        "measuring memory",
        "scoring the held-out rows before the first step",
    ]
    bench.told.clear()
    _, facts = bench.run(pretrain, "base", PRETRAIN, data)
    assert f"goes on from step 3 of {facts['steps']}" in bench.told
    assert bench.told[bench.told.index(f"goes on from step 3 of {facts['steps']}") + 1] == "steps 4"
    assert bench.told[-1] == "saving the model"
