"""The README.md of a model: what it is, how it was made and of what, how it scores, where it fails, how to use it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from potstill import __version__
from potstill.artifact import Artifact, check_bytes, read_json
from potstill.cards.card_parts import (
    dropped_part,
    escape,
    files_part,
    front_matter,
    licence_front,
    models_part,
    one_line,
    stages_part,
    table,
)
from potstill.evaluation.scores import SCORES_FILE
from potstill.lineage import models
from potstill.shipping.source import Source, without_paths
from potstill.stages import MODULES, stage

UNKNOWN = "unknown"
RECIPE_FILE = "recipe.yaml"
AUDIT_FILE = "audit.json"
VERSIONS = ("torch", "transformers", "tokenizers", "peft", "safetensors")
FEW = 100
"""Below so many questions a score's interval is wide."""
TAGS = {"dpo": "dpo", "sft": "sft", "distill": "distillation", "pretrain": "pretraining", "quantize": "quantized"}


@dataclass(frozen=True)
class Said:
    """What only a person can say, and what an export adds."""

    title: str
    licence: str = UNKNOWN
    languages: tuple[str, ...] = ()
    notes: str = ""
    format: str = "hub"
    base: str | None = None
    """What an adapter is loaded onto."""
    files: tuple[str, ...] = ()
    """GGUF files."""
    found: tuple[str, ...] = ()
    """Sentences of what was checked or differs."""


@dataclass(frozen=True)
class Score:
    """A model's mean on one suite."""

    suite: str
    protocol: str
    unit: str
    mean: float
    low: float | None
    high: float | None
    n: int
    coverage: float
    judges: str
    baseline: str = ""


def render(said: Said, source: Source) -> str:
    """The whole card; the same source gives the same bytes."""
    scores = list(read_scores(source))
    parts = [_front(said, source, scores), f"# {escape(said.title)}", _summary(said, source)]
    if said.notes.strip():
        parts.append("\n".join(f"> {escape(line)}" for line in said.notes.strip().splitlines()))
    parts += [_usage(said), _scores_part(scores), _audits_part(source), _limits(said, source, scores)]
    if source.lineage:
        parts += [stages_part(source.lineage), _configs(source.lineage)]
        parts += [models_part(source.all, source.terms), files_part(source.lineage), dropped_part(source.lineage)]
    parts += [_reproduce(source), _licences(said, source)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(said: Said, source: Source, scores: Sequence[Score]) -> str:
    title = one_line(said.title)
    front: dict[str, Any] = licence_front(said.licence)
    if said.languages:
        front["language"] = list(said.languages)
    front["pipeline_tag"] = "text-generation"
    front["library_name"] = {"adapter": "peft", "gguf": "gguf"}.get(said.format, "transformers")
    if said.base:
        front["base_model"] = one_line(said.base)
    elif bases := _bases(source):
        front["base_model"] = bases[0] if len(bases) == 1 else bases
    if datasets := sorted({hub for a in source.lineage if (hub := _hub(a))}):
        front["datasets"] = datasets
    kinds = [str(artifact.manifest["kind"]) for artifact in source.lineage]
    named = [TAGS[kind] for kind in dict.fromkeys(kinds) if kind in TAGS]
    front["tags"] = ["potstill", *named, *(["gguf"] if said.format == "gguf" else [])]
    if scores:
        front["model-index"] = [{"name": title, "results": [_result(score) for score in scores]}]
    return front_matter(front)


def _result(score: Score) -> dict[str, Any]:
    name = one_line(score.suite)
    what = f"{one_line(score.protocol)}, mean of {score.n}" + (f" ({one_line(score.unit)})" if score.unit else "")
    # Its own protocol's name is the benchmark's: whoever asks other questions in its way calls the suite otherwise.
    kind = score.protocol if score.suite.split("/")[0] == score.protocol else f"{score.protocol}_protocol"
    metric = {"type": one_line(kind), "value": round(score.mean, 4), "name": what, "verified": False}
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": name, "name": name},
        "metrics": [metric],
    }


def _hub(artifact: Artifact) -> str:
    return one_line(str(artifact.manifest["config"].get("hub") or ""))


def _bases(source: Source) -> list[str]:
    """Models of the Hub whose weights the lineage started from."""
    asked = [model.spec for model in models(source.lineage) if not model.spec.get("endpoint")]
    names = [str(spec.get("name", "")) for spec in asked]
    return list(dict.fromkeys(one_line(name) for name in names if name.count("/") == 1 and name[0] not in "./~"))


def _summary(said: Said, source: Source) -> str:
    kind = {"adapter": "An adapter of a language model", "gguf": "A language model for llama.cpp"}.get(said.format)
    last = f" by a stage of the kind `{source.artifact.manifest['kind']}`" if source.artifact else ""
    lines = [f"{kind or 'A language model'}, made{last} with potstill {__version__}."]
    if rounded := source.rounded:
        lines.append(_rounded(rounded))
    return " ".join([*lines, *map(escape, said.found)])


def _rounded(facts: Mapping[str, Any]) -> str:
    told = f"Its weights are rounded to {facts['bits']} bits ({facts['scheme']}, bitsandbytes)."
    if drift := facts.get("drift"):
        told += (
            f" Against the model that it was made of, over {drift['tokens']:,} tokens of answers: the same likeliest "
            f"token at {drift['same_likeliest_token']:.1%}, KL {drift['kl_nats_per_token']:.3g} nats a token."
        )
    return told


def _usage(said: Said) -> str:
    if said.format == "gguf":
        name = said.files[0] if said.files else "model.gguf"
        code = f"```sh\nllama-cli -m {name} -cnv --jinja\nllama-server -m {name} --jinja\n```"
        return f"## How to use it\n\nThe chat template is inside the file; `--jinja` takes it as it is.\n\n{code}"
    load = 'talk = pipeline("text-generation", model="THIS_FOLDER_OR_REPOSITORY")'
    head = "from transformers import pipeline"
    if said.format == "adapter":
        head = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer, pipeline\n\n"
            'here = "THIS_FOLDER_OR_REPOSITORY"\ntokenizer = AutoTokenizer.from_pretrained(here)'
        )
        load = (
            f"base = AutoModelForCausalLM.from_pretrained({one_line(said.base or '')!r})\n"
            "if len(tokenizer) > base.get_input_embeddings().num_embeddings:\n"
            "    base.resize_token_embeddings(len(tokenizer))\n"
            'talk = pipeline("text-generation", model=PeftModel.from_pretrained(base, here), tokenizer=tokenizer)'
        )
    ask = (
        'chat = [{"role": "user", "content": "Hello!"}]\n'
        'print(talk(chat, max_new_tokens=256)[0]["generated_text"][-1]["content"])'
    )
    return f"## How to use it\n\n```python\n{head}\n\n{load}\n{ask}\n```"


def read_scores(source: Source) -> Iterator[Score]:
    """The model's row of every suite that it was scored on."""
    for artifact in source.measured:
        if artifact.produces != "scores":
            continue
        check_bytes(artifact.path, [SCORES_FILE])
        judges = ", ".join(one["name"] for one in artifact.manifest["inputs"].get("judge", []))
        for name, suite in read_json(artifact.path / SCORES_FILE)["suites"].items():
            row = suite["models"].get(source.name)
            if row is not None and row.get("mean") is not None:
                yield Score(
                    name, suite["protocol"], suite.get("unit", ""), row["mean"], row["low"], row["high"], row["n"],
                    row.get("coverage", 1.0), judges, str(suite.get("baseline") or ""),
                )  # fmt: skip


def _scores_part(scores: Sequence[Score]) -> str:
    if not scores:
        return ""
    rows = [
        (
            score.suite,
            score.protocol,
            f"{score.mean:.4g}",
            "none" if score.low is None or score.high is None else f"{score.low:.4g} to {score.high:.4g}",
            str(score.n),
            f"{score.coverage:.0%}",
            score.judges or "none",
        )
        for score in scores
    ]
    told = table(("suite", "protocol", "score", "95% interval", "n", "could be scored", "judge"), rows)
    return f"## Scores\n\n{told}"


def _audits(source: Source) -> Iterator[tuple[str, str, str]]:
    """(danger, verdict on this model, sentence)."""
    for artifact in source.measured:
        if artifact.produces == "audit":
            check_bytes(artifact.path, [AUDIT_FILE])
            for danger in read_json(artifact.path / AUDIT_FILE)["dangers"].values():
                if verdict := danger["verdicts"].get(source.name):
                    yield danger["title"], verdict, danger["sentence"]


def _audits_part(source: Source) -> str:
    rows = list(_audits(source))
    return f"## Audits\n\n{table(('danger', 'verdict', 'in words'), rows)}" if rows else ""


def _limits(said: Said, source: Source, scores: Sequence[Score]) -> str:
    found = []
    if not scores:
        found.append("Nothing was measured on it: how well it answers is not known.")
    if few := [score.suite for score in scores if score.n < FEW]:
        found.append(f"Scores on fewer than {FEW} questions are rough: {', '.join(few)}.")
    if part := [score.suite for score in scores if score.coverage < 1]:
        found.append(f"Not every answer could be scored: {', '.join(part)}.")
    for title, verdict, _ in _audits(source):
        if verdict in ("flagged", "cannot tell", "not measured"):
            found.append(f"{title}: {verdict} by the audit.")
    if not said.languages:
        found.append("In which languages it answers was not said.")
    found.append("It may say what is false, and nothing here tells how it behaves where nobody looked.")
    return "## Known limits\n\n" + "\n".join(f"- {escape(one)}" for one in found)


def _configs(lineage: Iterable[Artifact]) -> str:
    """Each stage's settings, those that are not what they are anyway."""
    lines = []
    for artifact in lineage:
        manifest = artifact.manifest
        told = "; ".join(_settings(manifest["kind"], manifest["config"], set(manifest["inputs"])))
        lines.append(
            f"- **{escape(str(manifest['stage']))}** ({escape(str(manifest['kind']))}): {escape(told or 'as it is')}"
        )
    return "### Its settings\n\nWhat is not named is at its default.\n\n" + "\n".join(lines)


def _settings(kind: str, config: Mapping[str, Any], inputs: set[str]) -> Iterator[str]:
    made: Any = stage(kind).config if kind in MODULES else None
    untouched = {} if made is None else made.model_construct().model_dump(mode="json", warnings=False)
    for name, value in config.items():
        if name in ("kind", *inputs) or value in (None, "", [], {}) or value == untouched.get(name):
            continue
        yield f"{name.replace('_', ' ')} {without_paths(_spoken(value))}"


def _spoken(value: Any) -> str:
    """A setting as people write it: lists between commas, what is inside another in brackets, nothing that is empty."""
    if isinstance(value, Mapping):
        parts = [(key, one) for key, one in value.items() if one not in (None, "", [], {})]
        return ", ".join(f"{key} {_inside(one)}" for key, one in parts)
    return ", ".join(map(_inside, value)) if isinstance(value, list) else str(value)


def _inside(value: Any) -> str:
    return f"({_spoken(value)})" if isinstance(value, Mapping | list) else str(value)


def _reproduce(source: Source) -> str:
    versions = ", ".join(f"{name} {_version(name)}" for name in VERSIONS)
    lines = ["## How to make it again", f"Written with potstill {__version__}; {versions}."]
    if source.recipe:
        more = " ".join(f"'{escape_shell(one)}'" for one in source.overrides)
        lines.append(
            f"The recipe lies beside this card as `{RECIPE_FILE}`; of paths on the machine where it ran, only the last "
            f"part stands in it.\n\n```sh\npotstill run {RECIPE_FILE}{' ' + more if more else ''}\n```"
        )
    else:
        lines.append(f"No recipe lies beside this card: {escape(source.lost_recipe)}.")
    if source.artifact:
        lines.append(f"Key of the model's stage: `{source.artifact.key}`.")
    return "\n\n".join(lines)


def escape_shell(text: str) -> str:
    """Between single quotes, on one line, in a block of code that it cannot end."""
    return one_line(text).replace("'", "'\\''").replace("```", "'''")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _licences(said: Said, source: Source) -> str:
    stated = (
        f"Who made this model puts it under this licence: {escape(said.licence)}. Whether it may stand under it was "
        "not checked."
        if said.licence != UNKNOWN
        else "Who made this model does not say under what licence it stands."
    )
    teachers = any(model.spec.get("endpoint") for model in models(source.all))
    terms = (
        " The models named above wrote or judged what it learnt from; some providers' terms forbid to train models "
        "that compete with theirs, and where none are stated above nobody said."
        if teachers
        else ""
    )
    return f"## Licence\n\n{stated}{terms}"
