"""The recipes of real size: each plans with no network and no weights at hand, and runs whole at a scaled-down twin.

A twin has the recipe's own stages and hyper-parameters; what is written over it are paths, addresses, counts and
lengths, and a test says so of every field of every stage.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import twins
from test_leaderboard import SIZES, arc, hellaswag, mmlu, truthfulqa
from test_leaderboard import write as write_task
from training_stages import Bench
from transformers import AutoTokenizer

from potstill.artifact import Artifact, read_json
from potstill.convert.templates import CHATML
from potstill.recipe import Recipe, load_recipe, shipped
from potstill.records import Chat, Message, Pair
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import LocalModel, Model
from potstill.stages import sft
from potstill.tokens.tokenization import encode_chat, explain
from potstill.training.models import stop_ids

REAL = [name for name in shipped() if not name.startswith("miniature") and name != "real-preferences"]

NO_HYPER_PARAMETER = {
    "path", "hub", "subset", "files", "questions", "limit", "count", "expected_rows", "max_tokens", "judge_max_tokens",
    "per_text", "branching", "personas", "askers", "held_out",
}  # fmt: skip
"""Fields that say where rows and models are, how many there are, and how long a reply may be."""
FOUR_BITS = "adapter.kind"
"""4-bit weights need a CUDA device: on a CPU their twin trains the same additions on whole weights."""


def differing(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two configs differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from differing(one.get(key), other.get(key), f"{where}.{key}" if where else str(key))
    elif one != other:
        yield where


def written_over(name: str, overrides: list[str]) -> set[str]:
    """Which fields of which stages a twin's overrides change, as stage:field."""
    as_shipped, twin = load_recipe(name), load_recipe(name, overrides)
    assert list(as_shipped.stages) == list(twin.stages), "the same stages in the same order"
    return {
        f"{stage}:{field}"
        for stage in twin.stages
        for field in differing(*(r.stages[stage].config.model_dump() for r in (as_shipped, twin)))
    }


def hyper_parameters(fields: set[str]) -> set[str]:
    """Those among them that are none of paths, counts and lengths."""
    return {field for field in fields if NO_HYPER_PARAMETER.isdisjoint(field.rpartition(":")[2].split("."))}


def test_there_are_seven() -> None:
    assert sorted(REAL) == [
        "cross-family-70b-to-1.6b", "domain", "reasoning-traces", "self-improvement", "small-student", "zephyr-7b-beta",
        "zephyr-7b-beta-qlora",
    ]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_a_plan_needs_neither_network_nor_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every stage that asks tells calls and tokens, every one that trains tokens, whatever is not at hand."""
    import socket

    def refuse(*args: Any) -> Any:
        raise AssertionError(f"a plan asked the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    from potstill.cli import main

    assert main(["plan", name, "--out", str(tmp_path / "out")]) == 0
    assert "calls of teachers and judges" in capsys.readouterr().out
    steps = make_plan(load_recipe(name), Workspace(tmp_path / "out"), Hashes(tmp_path / "hashes.json")).steps
    for step in steps.values():
        kind = step.entry.config.kind
        if kind in ("sft", "dpo", "distill", "capture"):
            assert step.expected.tokens > 100_000, step.name
        if kind in ("converse", "reason", "sample", "judge", "magpie", "topics", "evolve"):
            assert step.expected.calls > 0, step.name
            assert step.expected.tokens > 0, step.name


@pytest.mark.parametrize("name", REAL)
def test_every_recipe_says_what_it_needs_how_it_runs_and_what_was_published(name: str) -> None:
    head = shipped()[name].read_text().partition("name:")[0]
    for word in ("Needs", f"potstill plan {name}", f"potstill run {name}", "Published"):
        assert word in head, f"{name}: {word}"


@pytest.mark.parametrize("name", REAL)
def test_every_hyper_parameter_says_where_it_is_from(name: str) -> None:
    """In a comment on its line, or in the ones above its stage; a stage that repeats another's numbers need not."""
    numbers = ("learning_rate", "epochs", "global_batch", "beta", "warmup", "rank", "max_length")
    lines = shipped()[name].read_text().splitlines()
    told: set[str] = set()
    stage_told = False
    for number, line in enumerate(lines):
        if line.startswith("  ") and not line.startswith("   ") and line.rstrip().endswith(":"):
            above = lines[number - 1].strip()
            stage_told = above.startswith("#")
        if line.strip().startswith("#"):
            stage_told = stage_told or "numbers" in line
        field, colon, value = line.strip().partition(":")
        if colon and field in numbers and line.startswith("    "):
            plain = f"{field}:{value.partition('#')[0].strip()}"
            assert "#" in value or stage_told or plain in told, f"{name}:{number + 1}: {line.strip()}"
            told.add(plain)


# The twins. Each takes a folder for what it makes, and gives the overrides.


def zephyr(root: Path, url: str, stack: ExitStack) -> list[str]:
    base = twins.mistral(root / "base")
    chats, pairs = twins.ultrachat(0, 64), twins.ultrafeedback(1000, 64)
    return [
        f"base_model={base}",
        f"judge_endpoint={url}",
        *_from_file("ultrachat_train", twins.write(root / "train_sft.jsonl", chats)),
        *_from_file("test_chats", twins.write(root / "test_sft.jsonl", twins.ultrachat(500, 12))),
        *_from_file("pairs", twins.write(root / "train_prefs.jsonl", pairs)),
        *_from_file("test_pairs", twins.write(root / "test_prefs.jsonl", twins.ultrafeedback(2000, 12))),
        f"scores.suites.leaderboard.files={json.dumps({task: str(file) for task, file in _tasks(root).items()})}",
        "scores.limit=2",
        "scores.max_tokens=6",
    ]


def zephyr_qlora(root: Path, url: str, stack: ExitStack) -> list[str]:
    base = twins.mistral(root / "base")
    return [
        f"base_model={base}",
        f"judge_endpoint={url}",
        *_from_file("chats", twins.write(root / "train_sft.jsonl", twins.ultrachat(0, 24))),
        *_from_file("test_chats", twins.write(root / "test_sft.jsonl", twins.ultrachat(500, 8))),
        *_from_file("pairs", twins.write(root / "train_prefs.jsonl", twins.ultrafeedback(1000, 32))),
        *_from_file("test_pairs", twins.write(root / "test_prefs.jsonl", twins.ultrafeedback(2000, 8))),
        "scores.limit=2",
        "scores.max_tokens=6",
        *([] if _cuda() else ["sft.adapter.kind=lora", "dpo.adapter.kind=lora"]),
    ]


def small_student(root: Path, url: str, stack: ExitStack) -> list[str]:
    return [
        f"endpoint={url}",
        f"judge_endpoint={url}",
        f"teacher_path={twins.qwen2_aligned(root / 'teacher')}",
        f"student_path={twins.qwen2_base(root / 'student')}",
        *_from_file("prompts", twins.write(root / "train_sft.jsonl", twins.ultrachat(0, 40))),
        *_from_file("held_out", twins.write(root / "test_sft.jsonl", twins.ultrachat(500, 6))),
        "prompt_count=32",
        "on_policy.on_policy.max_tokens=8",
        "scores.limit=2",
        "scores.max_tokens=6",
    ]


def cross_family(root: Path, url: str, stack: ExitStack) -> list[str]:
    teacher = twins.llama3(root / "assistant")
    scoring = stack.enter_context(twins.served(twins.Voice(), teacher))
    return [
        f"endpoint={scoring}",
        f"judge_endpoint={url}",
        f"assistant_path={teacher}",
        f"student_path={twins.stablelm2(root / 'student')}",
        *_from_file("prompts", twins.write(root / "train_sft.jsonl", twins.ultrachat(0, 40))),
        *_from_file("held_out", twins.write(root / "test_sft.jsonl", twins.ultrachat(500, 6))),
        "prompt_count=32",
        "scores.limit=2",
        "scores.max_tokens=6",
    ]


def reasoning(root: Path, url: str, stack: ExitStack) -> list[str]:
    return [
        f"endpoint={url}",
        f"teacher_path={twins.qwen3(root / 'teacher', aligned=True)}",
        f"student_path={twins.qwen3(root / 'student', aligned=False)}",
        *_from_file("problems", twins.write(root / "train.jsonl", twins.gsm8k(0, 40))),
        *_from_file("test", twins.write(root / "test.jsonl", twins.gsm8k(700, 6))),
        "on_policy.on_policy.max_tokens=8",
        "scores.max_tokens=6",
    ]


def self_improvement(root: Path, url: str, stack: ExitStack) -> list[str]:
    start = _aligned(root, twins.qwen2_aligned(root / "raw"))
    return [
        f"start_path={start}",
        "models.twin_judge=" + json.dumps({"endpoint": url, "name": "voice"}),
        "first_judge=twin_judge",
        "second_judge=twin_judge",
        f"judge_endpoint={url}",
        "first_prompts=8",
        "second_prompts=8",
        *(f"{stage}.max_tokens=40" for stage in ("asked_1", "asked_2", "own_1", "own_2")),
        "scores.limit=2",
        "scores.max_tokens=6",
    ]


def domain(root: Path, url: str, stack: ExitStack) -> list[str]:
    return [
        f"endpoint={url}",
        f"weights={_aligned(root, twins.mistral(root / 'base'))}",
        "asked.branching=[5, 1]",
        "asked.personas=1",
        "asked.askers=1",
        "asked.questions=1",
        "held_out.branching=[5, 1]",
        "held_out.questions=1",
        "writing.per_text=2",
        "sft.held_out=8",
        "scores.limit=2",
        "scores.max_tokens=6",
        "answers.max_tokens=40",
    ]


TWINS: dict[str, Callable[[Path, str, ExitStack], list[str]]] = {
    "zephyr-7b-beta": zephyr,
    "zephyr-7b-beta-qlora": zephyr_qlora,
    "small-student": small_student,
    "cross-family-70b-to-1.6b": cross_family,
    "reasoning-traces": reasoning,
    "self-improvement": self_improvement,
    "domain": domain,
}


def _from_file(stage: str, file: Path) -> list[str]:
    """The stage that reads a data set of the Hub reads this file."""
    return [f"{stage}.hub=null", f"{stage}.subset=null", f"{stage}.path={file}", f"{stage}.expected_rows=null"]


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _tasks(root: Path) -> dict[str, Path]:
    """The leaderboard's tasks, in the columns that they have on the Hub."""
    write_task(root / "arc" / "train.jsonl", arc(30, 1))
    write_task(root / "arc" / "test.jsonl", arc(4, 2))
    write_task(root / "hellaswag" / "train.jsonl", hellaswag(14, 3))
    write_task(root / "hellaswag" / "validation.jsonl", hellaswag(4, 5))
    write_task(root / "mmlu" / "dev.jsonl", mmlu(dict.fromkeys(SIZES, 5), 6))
    write_task(root / "mmlu" / "test.jsonl", mmlu(SIZES, 7))
    truth = write_task(root / "truth.jsonl", truthfulqa(4, 8))
    return {
        "arc_challenge": root / "arc", "hellaswag": root / "hellaswag", "mmlu": root / "mmlu", "truthfulqa_mc2": truth
    }  # fmt: skip


def _aligned(root: Path, raw: Path) -> Path:
    """A tiny model that asks and answers: it has learnt both sides of some dialogues by heart."""
    bench = Bench(root)
    rows = [
        Chat(
            id=str(number),
            messages=(
                Message(role="user", content=twins.asked(number)),
                Message(role="assistant", content=twins.answered(number)),
            ),
        )
        for number in range(40)
    ]
    config = {
        "model": "raw", "data": "dialogues", "learn": "all", "epochs": 40, "learning_rate": 5e-3, "global_batch": 8,
        "max_length": 512,
    }  # fmt: skip
    made, _ = bench.run(
        sft, "aligned", config, bench.data("dialogues", "chats", rows), Model("raw", LocalModel(path=str(raw)))
    )
    return Path(made.local.path)


@pytest.fixture
def twin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A recipe's twin, run to its end: its recipe and what its stages sealed."""
    name = request.param
    for variable, value in {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "sk-twin-0000"}.items():
        monkeypatch.setenv(variable, value)
    with ExitStack() as stack:
        overrides = TWINS[name](tmp_path, stack.enter_context(twins.served(twins.Voice())), stack)
        recipe = load_recipe(name, overrides)
        yield name, overrides, recipe, run(recipe, tmp_path / "run")


Twin = tuple[str, list[str], Recipe, dict[str, Artifact]]


@pytest.mark.slow
@pytest.mark.parametrize("twin", TWINS, indirect=True)
def test_the_recipe_runs_at_its_twin(twin: Twin) -> None:
    name, overrides, recipe, sealed = twin
    assert set(sealed) == set(recipe.stages)
    changed = hyper_parameters(written_over(name, overrides))
    models = {
        f"{stage}:{field}"
        for stage, entry in recipe.stages.items()
        for field in ("judge",)
        if entry.config.kind == "judge"
    }
    four_bits = (
        {f"{stage}:{FOUR_BITS}" for stage in ("sft", "dpo")} if name.endswith("qlora") and not _cuda() else set()
    )
    assert changed - four_bits - models == set(), "a twin keeps every hyper-parameter of its recipe"
    for stage, artifact in sealed.items():
        if artifact.produces == "model":
            _is_a_model(artifact, stage, name)
    scores = read_json(sealed["scores"].path / "scores.json")
    assert all(suite["models"] for suite in scores["suites"].values())
    assert (sealed["report"].path / "report.json").is_file()


def _is_a_model(artifact: Artifact, stage: str, name: str) -> None:
    """It trained, and is told to stop where its template ends a turn."""
    config = read_json(artifact.path / "config.json")
    expected = {"zephyr": "MistralForCausalLM", "domain": "MistralForCausalLM", "small": "Qwen2ForCausalLM",
                "self": "Qwen2ForCausalLM", "reasoning": "Qwen3ForCausalLM"}  # fmt: skip
    family = expected.get(name.split("-")[0]) or {"interpreter": "LlamaForCausalLM"}.get(stage, "StableLmForCausalLM")
    assert config["architectures"] == [family]
    assert artifact.facts["steps"] > 0
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    turns = [Message(role="user", content="Where?"), Message(role="assistant", content="Here.")]
    learnt = encode_chat(tokenizer, turns)
    ends = read_json(artifact.path / "generation_config.json")["eos_token_id"]
    assert int(learnt.ids_L[learnt.learn_L][-1]) in ([ends] if isinstance(ends, int) else ends), explain(
        tokenizer, learnt
    )


def test_a_hyper_parameter_that_a_twin_would_change_is_noticed() -> None:
    found = hyper_parameters(written_over("zephyr-7b-beta", ["dpo.beta=0.2", "sft.learning_rate=1", "scores.limit=3"]))
    assert found == {"dpo:beta", "sft:learning_rate"}
    assert hyper_parameters(written_over("zephyr-7b-beta-qlora", ["dpo.adapter.rank=8"])) == {"dpo:adapter.rank"}


def test_zephyrs_template_writes_what_the_handbook_trains_on() -> None:
    recipe = load_recipe("zephyr-7b-beta")
    assert recipe.stages["sft"].config.template == load_recipe("zephyr-7b-beta-qlora").stages["sft"].config.template
    tokenizer = twins.sentencepiece()
    tokenizer.chat_template = recipe.stages["sft"].config.template
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<s><|system|>\n</s>\n<|user|>\nHello</s>\n<|assistant|>\nHi</s>\n"
    )
    asked = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, turns[0]], tokenize=False, add_generation_prompt=True
    )
    assert asked == "<s><|system|>\nBe brief.</s>\n<|user|>\nHello</s>\n<|assistant|>\n"


def test_rows_of_the_twins_have_the_real_shapes(tmp_path: Path) -> None:
    """As `import` tells them: ultrachat_200k by its messages, ultrafeedback_binarized by its pairs."""
    from potstill.reading.formats import read_file

    chats = list(read_file(twins.write(tmp_path / "c.jsonl", twins.ultrachat(0, 3)), Chat))
    assert [len(chat.messages) for chat in chats] == [4, 4, 4]
    pairs = list(read_file(twins.write(tmp_path / "p.jsonl", twins.ultrafeedback(1, 3)), Pair))
    assert [(len(pair.prompt), len(pair.chosen)) for pair in pairs] == [(1, 1)] * 3


def test_a_base_model_stops_where_its_template_ends_a_turn() -> None:
    """Its end token ends documents, as Qwen's does: a student of it would otherwise talk on as the user."""
    model: Any = SimpleNamespace(generation_config=None, name_or_path="base")
    base = twins.qwen("Hello.", aligned=False)
    names = base.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert stop_ids(model, base) == sorted(names)
    assert stop_ids(model, twins.qwen("Hello.", aligned=True)) == [names[1]]
    plain = twins.sentencepiece()
    plain.chat_template = CHATML
    assert stop_ids(model, plain) == [plain.eos_token_id], "what no token of its own ends cannot be stopped at"
