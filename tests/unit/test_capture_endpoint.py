"""capture from an endpoint that gives log-probabilities: what a local model gives, through a server, its faults too."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.responses import Response
from stub_server import Stub, refusal, reply
from training_stages import CHATS, PRETRAIN, TEXTS, Bench
from transformers import AutoModelForCausalLM

from potstill.cli import main
from potstill.errors import DataError, RecipeError, TeacherError
from potstill.recipe import load_recipe
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.signals.files import Reader
from potstill.sources import Data, EndpointModel, Inputs, Model
from potstill.stages import capture, distill, pretrain
from potstill.teachers.base import Reply
from potstill.teachers.logprobs import read_signal
from potstill.teachers.wire import most_prompt_tokens

TOP = 5
Change = Callable[[list[Any], dict[str, Any]], Any]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("endpoint"))


@pytest.fixture(scope="module")
def base(bench: Bench) -> Model:
    return bench.run(pretrain, "base", PRETRAIN, bench.data("texts", "texts", TEXTS))[0]


@pytest.fixture(scope="module")
def chats(bench: Bench) -> Data:
    return bench.data("chats", "chats", CHATS[:20])


@pytest.fixture(scope="module")
def says(base: Model) -> Callable[[dict[str, Any]], list[Any]]:
    """What vLLM would say of a prompt with this model: for each token but the first, the likeliest and itself."""
    model = AutoModelForCausalLM.from_pretrained(base.local.path, dtype=torch.float32)

    @torch.no_grad()
    def of(body: dict[str, Any]) -> list[Any]:
        ids = body["prompt"]
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        places: list[Any] = [None]
        for place in range(1, len(ids)):
            row = logp[place - 1]
            chosen = {ids[place], *row.topk(body["prompt_logprobs"]).indices.tolist()}
            ranks = {token: int((row > row[token]).sum()) + 1 for token in chosen}
            said = {str(t): {"logprob": float(row[t]), "rank": ranks[t], "decoded_token": "x"} for t in chosen}
            places.append(said)
        return places

    return of


class Served:
    """A stub that scores prompts; `change` spoils what it says."""

    def __init__(
        self, says: Callable[[dict[str, Any]], list[Any]], change: Change | None = None, port: int = 0
    ) -> None:
        self.bodies: list[dict[str, Any]] = []

        async def fault(stub: Stub, body: dict[str, Any], before: int) -> Response:
            self.bodies.append(body)
            places = says(body)
            changed = change(places, body) if change else places
            if isinstance(changed, Response):
                return changed
            choice = {"index": 0, "text": "a", "finish_reason": "length", "prompt_logprobs": changed}
            used = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
            return reply({"id": "c", "choices": [choice], "usage": used})

        self.stub = Stub(fault=fault, port=port)


def asked(bench: Bench, out: str, served: Served, base: Model, chats: Data, **config: Any) -> tuple[Data, Any]:
    with served.stub as server:
        spec = EndpointModel(endpoint=server.base_url, name="big", revision="r1", **config.pop("spec", {}))
        models = {"teacher": (Model("far", spec, server.base_url),), "student": (base,)}
        given = {"teacher": "far", "student": "base", "data": "chats", "top": TOP, **config}
        _, facts = bench._run(capture, out, given, Inputs({"data": (chats,)}, models, {}))
    return Data(out, "signals", bench.root / out), facts


def test_the_signal_is_what_the_model_itself_would_give(bench: Bench, base: Model, chats: Data, says: Any) -> None:
    served = Served(says)
    far, facts = asked(bench, "far", served, base, chats)
    inputs = Inputs({"data": (chats,)}, {"teacher": (base,)}, {})
    given = {"teacher": "base", "data": "chats", "top": TOP, "dtype": "float32"}
    bench._run(capture, "near", given, inputs)
    ours, theirs = Reader(far.path / "signals"), Reader(bench.root / "near" / "signals")
    assert ours.keys() == theirs.keys()
    assert (ours.header.teacher, ours.header.top) == ("big@r1", TOP)
    assert ours.header.tokenizer == theirs.header.tokenizer
    for one, two in zip(ours.read(ours.keys()), theirs.read(theirs.keys()), strict=True):
        assert one.top_logp is not None
        assert one.top_ids is not None
        assert two.top_ids is not None
        np.testing.assert_allclose(one.top_logp, two.top_logp, atol=0.12)  # a code more or less
        assert (np.sort(one.top_ids) == np.sort(two.top_ids)).mean() > 0.99
        assert one.entropy is not None
        assert (one.entropy <= two.entropy + 0.02).all()
    assert facts["rows"] == 20
    assert all(body["max_tokens"] == 1 and body["prompt_logprobs"] == TOP for body in served.bodies)
    config = {"model": "base", "teacher": "far", "data": "chats", "epochs": 1, "divergence": "reverse_kl"}
    bench.teach(distill, "taught", config, chats, base, far)


def test_what_was_paid_for_is_not_asked_twice(base: Model, chats: Data, says: Any, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    spec = {"key_env": None, "price": {"input": 1.0, "output": 2.0}}
    first = Served(says)
    asked(bench, "once", first, base, chats, top=4, spec=spec)
    hashes = bench.hashes("once")
    again = Served(says, port=first.stub.port)
    asked(bench, "twice", again, base, chats, top=4, spec=spec)
    assert (len(first.bodies), len(again.bodies)) == (20, 0)
    assert bench.hashes("twice") == hashes


def without_target(places: list[Any], body: dict[str, Any]) -> Any:
    return [
        place and {name: said for name, said in place.items() if name != str(token)}
        for place, token in zip(places, body["prompt"], strict=True)
    ]


def fewer(places: list[Any], body: dict[str, Any]) -> Any:
    """Three, and the token that stands there, which must not be taken for the fourth."""
    return [
        place and {name: said for name, said in place.items() if said["rank"] <= 3 or name == str(token)}
        for place, token in zip(places, body["prompt"], strict=True)
    ]


FAULTS: dict[str, tuple[Change, str]] = {
    "no log-probabilities": (lambda places, body: None, "it gives no log-probabilities of a prompt's tokens. Serve it"),
    "other tokens": (lambda places, body: [None, *places], r"it was sent \d+ tokens, and speaks of \d+"),
    "another tokenizer": (without_target, r"stands token \d+, and it says nothing of that one: it reads other tokens"),
    "fewer": (fewer, r"of 5 log-probabilities it gives [34] at place \d+. Set top: [34], or raise the server's limit"),
    "padding": (
        lambda places, body: [p and {**p, "400": {"logprob": 0.0, "rank": 1}} for p in places],
        "token 400 is none of the student's 300",
    ),
    "nonsense": (lambda places, body: [p and {"x": 1} for p in places], r"what it says at place \d+ cannot be read"),
    "more than all": (
        lambda places, body: [p and {name: {**said, "logprob": 0.0} for name, said in p.items()} for p in places],
        r"at place \d+ its probabilities come to more than 1",
    ),
    "a token twice": (
        lambda places, body: [p and {**p, **{f"0{name}": said for name, said in p.items()}} for p in places],
        r"at place \d+ it names a token twice",
    ),
    "a limit": (
        lambda places, body: refusal(400, "Requested prompt logprobs of 5, which is greater than max allowed: 3"),
        "were all refused; the last: HTTP 400: Requested prompt logprobs of 5, which is greater than max allowed: 3",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_says_otherwise_is_refused(
    base: Model, chats: Data, says: Any, name: str, tmp_path: Path
) -> None:
    change, message = FAULTS[name]
    own = Bench(tmp_path)  # with a journal of its own
    with pytest.raises(TeacherError, match=message):
        asked(own, "refused", Served(says, change), base, chats)
    assert not list((own.root / "refused").iterdir())


def test_rows_that_could_not_be_served_are_left_out(base: Model, chats: Data, says: Any, tmp_path: Path) -> None:
    """Where the recipe allows it; and a later run asks for them again."""
    own, long = Bench(tmp_path), 0

    def too_long(places: list[Any], body: dict[str, Any]) -> Any:
        return refusal(400, "too long") if len(body["prompt"]) > long else places

    lengths = Served(says)
    asked(own, "lengths", lengths, base, chats, top=2)
    long = max(len(body["prompt"]) for body in lengths.bodies) - 1
    expected = sum(len(body["prompt"]) > long for body in lengths.bodies)
    spoilt = Served(says, too_long, lengths.stub.port)
    far, facts = asked(own, "some", spoilt, base, chats, spec={"max_unserved": 0.5})
    assert 0 < expected < 10
    assert facts["dropped"] == {"unserved": expected}
    assert len(Reader(far.path / "signals")) == facts["rows"] == 20 - expected
    whole, facts = asked(own, "some", Served(says, port=lengths.stub.port), base, chats)
    assert len(Reader(whole.path / "signals")) == facts["rows"] == 20


def test_where_no_row_could_be_served_the_servers_words_stand(base: Model, says: Any, tmp_path: Path) -> None:
    """Of many the client says so itself; of few the stage does."""
    served, own = Served(says, lambda places, body: refusal(400, "no such model")), Bench(tmp_path)
    with pytest.raises(DataError, match="no row could be captured: 2 of 2 were refused; the first: HTTP 400: no such"):
        asked(own, "none", served, base, own.data("few", "chats", CHATS[:2]), spec={"max_unserved": 1.0})


def test_the_token_that_stands_there_is_none_of_the_likeliest_unless_it_is() -> None:
    """By hand: 2 asked for, of p = 0.5, 0.25 and 0.01 for the token itself."""
    place = {"7": {"logprob": math.log(0.25), "rank": 2}, "9": {"logprob": math.log(0.01), "rank": 17}}
    body = {"choices": [{"prompt_logprobs": [None, {**place, "3": {"logprob": math.log(0.5), "rank": 1}}]}]}
    found = read_signal(Reply("", body=str(body).replace("'", '"').replace("None", "null")), [3, 9], [1], 2, 10)
    assert found.top_ids is not None
    assert found.top_ids.tolist() == [[3, 7]]
    assert np.exp(found.top_logp)[0].tolist() == pytest.approx([0.5, 0.25])
    assert found.entropy is not None
    assert found.entropy[0] == pytest.approx(1.5 * math.log(2))  # 1/2, 1/4 and all others with 1/4


def test_a_prompt_of_tokens_counts_as_so_many() -> None:
    assert most_prompt_tokens({"prompt": [5, 60_000, 128_000], "model": "m"}) == 3


RECIPE = """\
name: toy
models:
  m: {path: some/model}
  far: {endpoint: http://localhost:9/v1, name: big, price: {input: 2, output: 6}%s}
stages:
  s: {kind: capture, teacher: far, data: chats.jsonl, %s}
"""
REFUSED = {
    "no student": ("", "top: 5", "'s.student': 'far' is behind an endpoint, and its tokenizer is not at hand"),
    "draws": ("", "student: m, draws: 5", "'s.draws': 'far' is behind an endpoint, which gives the likeliest tokens"),
    "states": ("", "student: m, top: 5, layers: [1]", "'s.layers': 'far' is behind an endpoint"),
    "temperature": ("", "student: m, top: 5, temperature: 2", "'s.temperature': 'far' is behind an endpoint"),
    "type": ("", "student: m, top: 5, dtype: float32", "'s.dtype': 'far' is behind an endpoint, which computes as it"),
    "batch": (", batch: true", "student: m, top: 5", "'s.teacher': 'far' is behind an endpoint by batch jobs"),
}


def planned(folder: Path, model: str, stage: str) -> Any:
    (folder / "chats.jsonl").write_text("".join(row.to_line() for row in CHATS))
    (folder / "toy.yaml").write_text(RECIPE % (model, stage))
    recipe = load_recipe(str(folder / "toy.yaml"), ())
    return make_plan(recipe, Workspace(folder / "run"), Hashes(folder / "hashes.json"))


@pytest.mark.parametrize("case", REFUSED)
def test_a_plan_refuses_what_no_endpoint_gives(tmp_path: Path, case: str) -> None:
    model, stage, message = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, model, stage)
    assert message in str(caught.value)


def test_a_plan_forecasts_its_calls(tmp_path: Path) -> None:
    expected = planned(tmp_path, "", "student: m, top: 5").steps["s"].expected
    assert (expected.rows, expected.calls, expected.tokens) == (48, 48, 48 * 501)


THROUGH = """\
name: toy
models:
  m: {path: %s}
  far: {endpoint: "%s", name: big}
stages:
  told: {kind: capture, teacher: far, student: m, data: chats.jsonl, top: 5}
  s: {kind: distill, model: m, teacher: told, data: chats.jsonl, divergence: jsd}
"""


def test_through_the_command_line_and_with_a_byte_flipped(
    base: Model, says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The endpoint is asked by the pipeline's own process, which holds the budget; training says in one line what it
    cannot read, and goes on once that is mended."""
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text("".join(row.to_line() for row in CHATS[:20]))
    served = Served(says)
    with served.stub as server:
        Path("toy.yaml").write_text(THROUGH % (base.local.path, server.base_url))
        assert main(["run", "toy.yaml", "--until", "told"]) == 0
    assert main(["show", "runs/toy", "told", "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "the 5 largest entries" in shown
    assert "big@" in shown
    (shard,) = Path("runs/toy/artifacts").glob("told-*/signals/*.signal")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
    assert main(["run", "toy.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "its bytes are not those that were sealed. Remove " in said
    assert not list(Path("runs/toy/artifacts").glob("s-*"))
    shard.write_bytes(whole)
    assert main(["run", "toy.yaml"]) == 0
    assert len(served.bodies) == 20
