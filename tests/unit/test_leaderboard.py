"""The leaderboard's tasks through lm-eval: the same numbers as lm-eval run by hand, and what is refused."""

import json
import os
import random
import socket
from pathlib import Path
from statistics import fmean

import pytest
import torch
import yaml
from evaluation_fakes import endpoint, inputs, work
from tokenizer_families import byte_level
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.artifact import read_json
from potstill.errors import DataError, ModelError, RecipeError
from potstill.evaluation.leaderboard import V1
from potstill.evaluation.scores import read_results
from potstill.evaluation.statistics import mean_estimate
from potstill.runs.extras import check_extras
from potstill.sources import Data, LocalModel, Model
from potstill.stages import evaluate
from potstill.tokens.tokenization import DEFAULT_TEMPLATE

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'potstill[leaderboard]'")

SIZES = {"anatomy": 6, "astronomy": 3, "virology": 11}
WORDS = ["river", "stone", "lamp", "winter", "garden", "bread", "engine", "letter", "mirror", "cloud"]


def arc(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [
        {
            "id": f"a{i}",
            "question": f"Which of these goes with the {draw.choice(WORDS)} number {i}?",
            "choices": {"text": draw.sample(WORDS, 4), "label": list("ABCD") if i % 3 else list("1234")},
            "answerKey": ("ABCD" if i % 3 else "1234")[draw.randrange(4)],
        }
        for i in range(count)
    ]


def hellaswag(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [
        {
            "ind": i,
            "activity_label": "Mending things",
            "ctx_a": f"Someone [title] takes the {draw.choice(WORDS)} apart.",
            "ctx_b": "then they",
            "ctx": "unused",
            "endings": [f"look for the {word} of {i}." for word in draw.sample(WORDS, 4)],
            "label": str(draw.randrange(4)) if i % 2 else draw.randrange(4),
        }
        for i in range(count)
    ]


def mmlu(sizes: dict[str, int], seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [
        {
            "question": f"In {subject}, what does case {i} of the {draw.choice(WORDS)} show? ",
            "subject": subject,
            "choices": draw.sample(WORDS, 4),
            "answer": draw.randrange(4),
        }
        for subject, count in sizes.items()
        for i in range(count)
    ]


def truthfulqa(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        choices = [f"The {word} did it." for word in draw.sample(WORDS, 5)]
        targets = {"choices": choices, "labels": [1, 1, 0, 0, 0] if i % 2 else [1, 0, 0, 0, 1]}
        first = {"choices": choices, "labels": [1, 0, 0, 0, 0]}
        rows.append({"question": f"Who moved the {draw.choice(WORDS)}?", "mc1_targets": first, "mc2_targets": targets})
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Each of the four tasks as a folder or a file."""
    root = tmp_path_factory.mktemp("tasks")
    write(root / "arc" / "train.jsonl", arc(30, 1))
    (root / "arc" / "test.json").write_text(json.dumps(arc(9, 2)))
    write(root / "hellaswag" / "train-00000-of-00002.jsonl", hellaswag(7, 3))
    write(root / "hellaswag" / "train-00001-of-00002.jsonl", hellaswag(7, 4))
    write(root / "hellaswag" / "validation.jsonl", hellaswag(8, 5))
    write(root / "mmlu" / "all" / "dev.jsonl", mmlu(dict.fromkeys(SIZES, 5), 6))
    write(root / "mmlu" / "all" / "test.jsonl", mmlu(SIZES, 7))
    return {
        "arc_challenge": root / "arc",
        "hellaswag": root / "hellaswag",
        "mmlu": root / "mmlu",
        "truthfulqa_mc2": write(root / "truth.jsonl", truthfulqa(7, 8)),
    }


def save(folder: Path, template: str | None, seed: int = 0, positions: int = 8192, around: str = "{}") -> Path:
    """A tiny model with random weights, sharp enough that its answers differ."""
    torch.set_num_threads(1)
    tokenizer = byte_level(320)
    tokenizer.chat_template = template
    if around != "{}":
        ends = [(end, tokenizer.convert_tokens_to_ids(end)) for end in ("<s>", "</s>")]
        tokenizer._tokenizer.post_processor = TemplateProcessing(single=around.format("$A"), special_tokens=ends)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=positions, pad_token_id=None, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"base": save(root / "base", None), "sft": save(root / "sft", DEFAULT_TEMPLATE, seed=1)}


def local(models: dict[str, Path]) -> tuple[Model, ...]:
    return tuple(Model(name, LocalModel(path=str(path))) for name, path in models.items())


def suite(**changes) -> evaluate.Evaluate:
    limit = changes.pop("limit", None)
    return evaluate.Evaluate.model_validate(
        {
            "kind": "evaluate",
            "models": ["base", "sft"],
            "limit": limit,
            "suites": {"board": {"protocol": "leaderboard", **changes}},
        }
    )


def run(folder: Path, files: dict[str, Path], models: tuple[Model, ...], warnings: list[str] | None = None, **changes):
    """scores.json, the results read back, and the facts."""
    job = work(folder)
    if warnings is not None:
        job = type(job)(job.path, job.workspace, job.seed, warn=warnings.append)
    config = suite(files={name: str(path) for name, path in files.items()}, **{"tasks": list(files), **changes})
    data = {f"suites.board.files.{name}": Data(path.name, "file", path) for name, path in files.items()}
    facts = evaluate.run(config, inputs(data, {"models": models}), job)
    return read_json(job.path / "scores.json")["suites"], read_results(job.path), facts


@pytest.fixture
def no_network(monkeypatch):
    """Whoever opens a connection fails."""

    def refuse(self, address):
        raise AssertionError(f"somebody connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def offline() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "OFFLINE" in name}


@pytest.fixture(scope="module")
def board(files, models, tmp_path_factory):
    """All four tasks as the leaderboard asks them, of both models, with template and without."""
    folder, warnings = tmp_path_factory.mktemp("board"), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket.socket, "connect", lambda self, address: pytest.fail(f"connects to {address}"))
        before = offline(), random.getstate()
        scores, results, facts = run(folder, files, local(models), warnings)
        assert (offline(), random.getstate()) == before
    return scores, results, facts, warnings


def by_hand(folder: Path, files: dict[str, Path], model: Path, template: bool, monkeypatch) -> dict:
    """lm-eval itself on the same rows: task files of its own kind, written here, which name data files."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = Path(lm_eval.__file__).parent / "tasks"
    own = {
        "arc_challenge": (tasks / "arc/arc_challenge.yaml", 25, {"train": "train.jsonl", "test": "test.json"}),
        "hellaswag": (
            tasks / "hellaswag/hellaswag.yaml", 10, {"train": "train-*.jsonl", "validation": "validation.jsonl"},
        ),
        "truthfulqa_mc2": (tasks / "truthfulqa/truthfulqa_mc2.yaml", 0, {"validation": ""}),
    }  # fmt: skip
    for subject in SIZES:
        rows = {"dev": mmlu(dict.fromkeys(SIZES, 5), 6), "test": mmlu(SIZES, 7)}
        for split, found in rows.items():
            write(folder / subject / f"{split}.jsonl", [row for row in found if row["subject"] == subject])
        paths = {split: folder / subject / f"{split}.jsonl" for split in rows}
        own[f"mmlu_{subject}"] = (tasks / f"mmlu/default/mmlu_{subject}.yaml", 5, paths)
    for name, (path, shots, splits) in own.items():
        task = {
            "include": str(path),
            "task": f"hand_{name}",
            "dataset_path": "json",
            "dataset_name": None,
            "num_fewshot": shots,
            "dataset_kwargs": {
                "data_files": {split: str(files.get(name, Path("/")) / end) for split, end in splits.items()},
                "cache_dir": str(folder / "cache"),
            },
        }
        if name == "arc_challenge":
            task["validation_split"] = None
        if name == "truthfulqa_mc2":
            task["dataset_kwargs"]["data_files"] = {"validation": str(files[name])}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    group = {
        "group": "hand_mmlu",
        "task": [f"hand_mmlu_{subject}" for subject in SIZES],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "mmlu.yaml").write_text(yaml.safe_dump(group))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # it asks pip, git and the GPU
    return simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=["hand_arc_challenge", "hand_hellaswag", "hand_mmlu", "hand_truthfulqa_mc2"],
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
        apply_chat_template=template,
        fewshot_as_multiturn=template,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )


METRICS = {"arc_challenge": "acc_norm", "hellaswag": "acc_norm", "truthfulqa_mc2": "acc"}


@pytest.mark.parametrize("template", [False, True])
def test_the_numbers_are_those_of_lm_eval_run_by_hand(board, files, models, tmp_path, monkeypatch, template):
    _, results, _, _ = board
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: (_ for _ in ()).throw(OSError("no network")))
    found = by_hand(tmp_path, files, models["sft"], template, monkeypatch)
    prefix = "board/template/" if template else "board/"
    for task, metric in METRICS.items():
        ours = results[prefix + task].observations["sft"]
        theirs = [sample[metric] for sample in found["samples"][f"hand_{task}"]]
        assert [row.value for row in ours] == pytest.approx(theirs, abs=1e-12)
        published = found["results"][f"hand_{task}"][f"{metric},none"]
        assert mean_estimate(ours).mean == pytest.approx(published, abs=1e-12)
    rows = results[prefix + "mmlu"].observations["sft"]
    subjects = {subject: found["results"][f"hand_mmlu_{subject}"]["acc,none"] for subject in SIZES}
    weighed = found["results"]["hand_mmlu"]["acc,none"]
    assert mean_estimate(rows).mean == pytest.approx(fmean(subjects.values()), abs=1e-12)
    assert fmean(row.value for row in rows) == pytest.approx(weighed, abs=1e-12)
    assert abs(weighed - fmean(subjects.values())) > 0.01, "subjects that differ in size must tell the two apart"


def test_the_suites_and_their_rows(board):
    scores, results, facts, warnings = board
    tasks = list(V1)
    assert list(scores) == [
        "board", *(f"board/{task}" for task in tasks), "board/template", *(f"board/template/{task}" for task in tasks),
        "board/template_effect",
    ]  # fmt: skip
    assert list(scores["board"]["models"]) == ["base", "sft"]
    assert list(scores["board/template"]["models"]) == ["sft"], "base has no template"
    assert any("base has no chat template" in line for line in warnings)
    for model in ("base", "sft"):
        means = [scores[f"board/{task}"]["models"][model]["mean"] for task in tasks]
        assert scores["board"]["models"][model]["mean"] == pytest.approx(fmean(means), abs=1e-12)
    assert list(scores["board/mmlu"]["categories"]) == [f"mmlu_{subject}" for subject in SIZES]
    effect = scores["board/template_effect"]["models"]["sft"]["mean"]
    pair = scores["board/template"]["models"]["sft"]["mean"] - scores["board"]["models"]["sft"]["mean"]
    assert effect == pytest.approx(pair, abs=1e-12)
    said = facts["notes"]["board"]
    assert said["shots"] == {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc2": 0}
    assert said["metrics"] == {task: setting.metric for task, setting in V1.items()}
    assert (said["subjects"], "truncated" in said) == (3, False)
    assert any("the files of mmlu hold 3 of 57 subjects" in line for line in warnings)
    assert all(result.measure.share for name, result in results.items() if name != "board/template_effect")


def test_a_limit_is_of_each_task_and_subject(files, models, tmp_path):
    scores, *_ = run(
        tmp_path, files, local(models)[1:], limit=2, chat_template=False,
        shots={"arc_challenge": 1, "hellaswag": 1, "mmlu": 1}, batch_size=3,
    )  # fmt: skip
    counts = {name: suite["models"]["sft"]["n"] for name, suite in scores.items()}
    assert counts == {
        "board": 12, "board/arc_challenge": 2, "board/hellaswag": 2, "board/mmlu": 6, "board/truthfulqa_mc2": 2,
    }  # fmt: skip


def test_a_run_that_is_killed_goes_on_where_it_was(files, models, tmp_path, monkeypatch):
    """What is scored stands; and a trial of few questions is never taken for the whole."""
    from potstill.evaluation import harness

    asked, whole = {"arc_challenge": files["arc_challenge"], "truthfulqa_mc2": files["truthfulqa_mc2"]}, []
    few, *_ = run(tmp_path, asked, local(models), limit=2)
    score = harness._score

    def killed(reader, task, *others):
        whole.append((reader.name, task.name))
        if len(whole) == 4:
            raise KeyboardInterrupt
        return score(reader, task, *others)

    monkeypatch.setattr(harness, "_score", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, asked, local(models))
    again, *_ = run(tmp_path, asked, local(models))
    assert whole == [("base", task) for task in asked] + [("sft", "arc_challenge")] + [
        ("sft", "truthfulqa_mc2")
    ] * 2 + [("sft", task) for task in asked]
    straight, *_ = run(tmp_path / "straight", asked, local(models))
    assert again == straight != few


def test_other_tasks_are_asked_as_lm_eval_has_them(files, models, tmp_path):
    scores, results, facts = run(tmp_path, {"arc_easy": files["arc_challenge"]}, local(models)[1:])
    assert (facts["notes"]["board"]["shots"], facts["notes"]["board"]["metrics"]) == (
        {"arc_easy": 0},
        {"arc_easy": "acc"},
    )
    assert list(scores) == ["board/arc_easy", "board/template/arc_easy", "board/template_effect"], (
        "a mean of one is none"
    )
    values = {row.value for row in results["board/arc_easy"].observations["sft"]}
    assert values == {0.0, 1.0}


def test_without_files_lm_eval_asks_the_hub_for_the_same(files, models, tmp_path, monkeypatch):
    """What the Hub would answer is put in its place: the rows under the names that lm-eval asks by."""
    import datasets

    from potstill.evaluation import harness

    asked = []

    def load_dataset(path, name, **others):
        asked.append((path, name))
        rows = {"train": arc(30, 1), "validation": arc(5, 9), "test": arc(9, 2)}
        return {split: datasets.Dataset.from_list(found) for split, found in rows.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (far,) = harness.open_tasks([harness.Asked("arc_challenge")])
    (near,) = harness.open_tasks([harness.Asked("arc_challenge", None, files["arc_challenge"])])
    assert asked == [("allenai/ai2_arc", "ARC-Challenge")]
    with harness.Reader(local(models)[1]) as reader:
        found = [harness.score(reader, task, True, None, lambda total, unit: lambda: None) for task in (far, near)]
    assert found[0] == found[1]


def test_what_is_no_share_of_questions_is_refused():
    from potstill.evaluation import harness

    task = harness.Task("wikitext", 0, {}, False)
    with pytest.raises(DataError, match="its metric word_perplexity is no share between 0 and 1"):
        harness._value(task, {"filtered_resps": [-5.0], "word_perplexity": (-5.0, 3)}, "word_perplexity")
    with pytest.raises(DataError, match=r"sums p up as 0.900000, which is not the mean over its questions"):
        harness._check_means(task, {"p": [0.0, 1.0]}, {"p": 0.9})


# What one model reads.


def read_prompts(files, model: Path, task: str, template: bool, shots: int):
    """The token ids that lm-eval hands to the model, and the reader."""
    from potstill.evaluation import harness

    (opened,) = harness.open_tasks([harness.Asked(task, shots, files[task])])
    seen: list[list[int]] = []
    with harness.Reader(Model("m", LocalModel(path=str(model)))) as reader:
        plain = reader._model_call

        def call(tokens, **others):
            seen.extend(row.tolist() for row in tokens)
            return plain(tokens, **others)

        reader._model_call = call
        harness.score(reader, opened, template, 2, lambda total, unit: lambda: None)
        return seen, reader


NO_BOS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant: ' }}"


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, NO_BOS])
def test_the_first_token_is_never_doubled(files, tmp_path, template):
    model = save(tmp_path / "m", template, around="<s> {}")
    for templated in (False, True):
        rows, reader = read_prompts(files, model, "arc_challenge", templated, 1)
        first = reader.tokenizer.bos_token_id
        assert rows
        assert all(row[0] == first and row[1] != first for row in rows)


def test_a_template_is_applied_with_shots_as_turns(files, models):
    rows, reader = read_prompts(files, models["sft"], "arc_challenge", True, 2)
    text = reader.tokenizer.decode(rows[0])
    plain, _ = read_prompts(files, models["sft"], "arc_challenge", False, 2)
    assert text.count("<|user|>") == text.count("<|assistant|>") == 3, "two solved examples and the question"
    assert "<|user|>" not in reader.tokenizer.decode(plain[0])


def test_prompts_that_are_cut_are_counted_and_told(files, tmp_path):
    warnings: list[str] = []
    model = save(tmp_path / "m", None, positions=200)
    _, _, facts = run(
        tmp_path, {"arc_challenge": files["arc_challenge"]}, local({"base": model}), warnings, chat_template=False
    )
    assert facts["notes"]["board"]["truncated"] == {"board/arc_challenge": {"base": 9}}
    assert any("9 prompts are longer than what base reads" in line for line in warnings)


def test_a_question_that_cannot_be_scored_lowers_the_coverage(files, tmp_path):
    rows = arc(4, 2)
    rows[1]["choices"]["text"][2] = "word " * 400
    path = write(tmp_path / "arc.jsonl", rows)
    model = save(tmp_path / "m", None, positions=300)
    scores, results, _ = run(
        tmp_path, {"arc_challenge": path}, local({"base": model}), shots={"arc_challenge": 0}, chat_template=False
    )
    assert [row.value is None for row in results["board/arc_challenge"].observations["base"]] == [
        False, True, False, False,
    ]  # fmt: skip
    assert scores["board/arc_challenge"]["models"]["base"]["coverage"] == 0.75


# What is refused.


def refused(kind, match, folder, files, model, **changes):
    with pytest.raises(kind, match=match) as caught:
        run(folder, files, model, **changes)
    assert "\n" not in str(caught.value)


def test_bad_files_are_told_in_one_line(files, models, tmp_path):
    model = local(models)[1:]
    (tmp_path / "empty").mkdir()
    refused(DataError, "no file of the split 'test', which arc_challenge asks", tmp_path / "1",
            {"arc_challenge": tmp_path / "empty"}, model)  # fmt: skip
    refused(DataError, r"truth.jsonl:1: not a row of arc_challenge: 'choices' is no mapping", tmp_path / "2",
            {"arc_challenge": files["truthfulqa_mc2"]}, model)  # fmt: skip
    broken = arc(3, 1)
    broken[2]["answerKey"] = "Z"
    refused(DataError, r"b.jsonl:3: .*'answerKey' is none of the choices' labels", tmp_path / "3",
            {"arc_challenge": write(tmp_path / "b.jsonl", broken)}, model)  # fmt: skip
    wrong = write(tmp_path / "m.jsonl", mmlu({"alchemy": 2}, 1))
    refused(DataError, "'alchemy' is none of MMLU's 57 subjects", tmp_path / "4", {"mmlu": wrong}, model)


def test_too_few_examples_to_show_are_told(files, models, tmp_path):
    model = local(models)[1:]
    refused(DataError, r"shows 31 solved examples, which takes 31 rows in its split 'train'; there are 30.*"
            r"set shots: \{arc_challenge: 30\}", tmp_path / "1", {"arc_challenge": files["arc_challenge"]}, model,
            shots={"arc_challenge": 31})  # fmt: skip
    refused(DataError, r"shows 25 solved examples.*there is no such file.*set shots: \{arc_challenge: 0\}",
            tmp_path / "2", {"arc_challenge": files["arc_challenge"] / "test.json"}, model)  # fmt: skip
    refused(DataError, "'mmlu_anatomy' shows 6 solved examples, which takes 6 rows in its split 'dev'; there are 5",
            tmp_path / "3", {"mmlu": files["mmlu"]}, model, shots={"mmlu": 6})  # fmt: skip


def test_a_template_that_is_not_there_is_refused_where_it_is_asked_for(files, models, tmp_path):
    refused(ModelError, "model base: its tokenizer has no chat template", tmp_path,
            {"truthfulqa_mc2": files["truthfulqa_mc2"]}, local(models), chat_template=True)  # fmt: skip


def test_a_tokenizer_that_ends_every_text_is_refused(files, tmp_path):
    """Its end token would stand between a prompt and its choice, and the choice's first token would not be scored."""
    model = local({"m": save(tmp_path / "m", None, around="{} </s>")})
    refused(ModelError, "puts the end token behind every text", tmp_path,
            {"truthfulqa_mc2": files["truthfulqa_mc2"]}, model)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"files": {"winogrande": "x"}, "tasks": ["winogrande"]}, "files of 'winogrande' cannot be read here"),
        ({"files": {"arc": "x"}}, "'arc' is none of its tasks"),
        ({"shots": {"truthfulqa_mc2": 3}}, "truthfulqa_mc2 has no solved examples"),
        ({"tasks": ["mmlu", "mmlu"]}, "the same task stands in 'tasks' twice"),
        ({"tasks": []}, "at least 1 item"),
    ],
)
def test_suites_that_mean_nothing(changes, match):
    with pytest.raises(ValueError, match=match):
        suite(**changes)


def test_endpoints_are_refused_with_the_reason():
    with pytest.raises(RecipeError, match="needs log-probabilities, and 'far' is behind an endpoint"):
        suite().check_models({"models": [endpoint("far")]})


def test_without_lm_eval_a_run_names_the_extra_before_it_begins(monkeypatch):
    monkeypatch.setattr("potstill.runs.extras.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs lm-eval.*pip install 'potstill\[leaderboard\]'"):
        check_extras([("scores", suite())])


def test_what_a_plan_expects_and_tries():
    """Published sizes, with a limit of each task and subject; a trial asks few."""
    assert suite().expect({}).tokens == (1172 + 10042 + 14042 + 817) * 2 * 2 * 512
    assert suite(limit=10, chat_template=False).expect({}).tokens == (10 + 10 + 570 + 10) * 2 * 512
    assert (suite().for_trial(3).limit, suite(limit=2).for_trial(3).limit) == (3, 2)


def test_a_recipe_names_folders_whose_files_count(files, tmp_path):
    """The key follows what lies in the folder, several splits beside each other too."""
    from potstill.recipe import load_recipe
    from potstill.runs.plan import make_plan
    from potstill.runs.workspace import Hashes, Workspace

    save(tmp_path / "m", None)
    write(tmp_path / "arc" / "train.jsonl", arc(30, 1))
    write(tmp_path / "arc" / "test.jsonl", arc(3, 1))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nmodels: {m: {path: m}}\nstages:\n  scores:\n    kind: evaluate\n    models: [m]\n    suites:\n"
        "      board: {protocol: leaderboard, tasks: [arc_challenge], files: {arc_challenge: arc}}\n"
    )

    def key():
        plan = make_plan(load_recipe(str(recipe), []), Workspace(tmp_path / "run"), Hashes(tmp_path / "hashes.json"))
        return plan.steps["scores"]

    first = key()
    write(tmp_path / "arc" / "train.jsonl", arc(31, 1))
    assert key().key != first.key
    recipe.write_text(recipe.read_text().replace(": arc}", ": ark}"))
    with pytest.raises(RecipeError, match="'ark', which is neither"):
        key()


# Slow to index: lm-eval reads all of its task files to say that a name is none of them.


@pytest.mark.slow
def test_names_that_are_none_are_told_with_the_nearest(no_network):
    from potstill.evaluation import harness

    with pytest.raises(RecipeError, match=r"has no task 'arc_chalenge' \(did you mean 'arc_challenge'\?\)"):
        harness.open_tasks([harness.Asked("arc_chalenge")])
    with pytest.raises(RecipeError, match="'mmlu_stem' is a group of lm-eval's tasks"):
        harness.open_tasks([harness.Asked("mmlu_stem")])


def test_without_network_and_files_the_remedy_is_named(tmp_path, monkeypatch):
    from potstill.evaluation import harness

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot be read from the Hugging Face Hub.*files: \{arc_challenge: FOLDER\}"):
        harness.open_tasks([harness.Asked("arc_challenge")])
