"""What leaves the house: folders for the Hub, adapters, their cards, and that nothing half-made or private goes."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped_models import finished_run, logits, small
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from potstill.cli import main
from potstill.errors import DataError, ModelError, StorageError
from potstill.shipping.export import Wish, export
from potstill.shipping.folder import whole_folder
from potstill.shipping.model_card import Said, render
from potstill.shipping.push import pack
from potstill.shipping.source import Source, check_sound, read_source, without_paths


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("ship") / "run").path


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "hub"
    export(f"{run}:sft", out, Wish(licence="apache-2.0", languages=("en",), title="My model"))
    return out


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_hub_folder_computes_what_was_sealed_and_stops(run, shipped):
    sealed = AutoModelForCausalLM.from_pretrained(run / "sft")
    out = AutoModelForCausalLM.from_pretrained(shipped)
    words = AutoTokenizer.from_pretrained(shipped)
    assert torch.equal(logits(out, words), logits(sealed, words))
    assert words.chat_template == AutoTokenizer.from_pretrained(run / "sft").chat_template
    ends = GenerationConfig.from_pretrained(shipped)
    assert ends.eos_token_id == words.eos_token_id
    assert ends.pad_token_id == words.pad_token_id != words.eos_token_id


def test_a_hub_folder_holds_nothing_of_its_run(shipped):
    assert sorted(path.name for path in shipped.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "potstill.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    told = "".join(path.read_text(errors="replace") for path in shipped.glob("*.[jm]*"))
    assert str(Path.home()) not in told
    assert "/tmp" not in told


def test_the_same_model_gives_the_same_bytes(run, shipped, tmp_path):
    export(f"{run}:sft", tmp_path / "x", Wish(licence="apache-2.0", languages=("en",), title="My model"))
    assert hashes(tmp_path / "x") == hashes(shipped)


def test_the_hub_reads_the_cards_front_matter(shipped):
    card = ModelCard.load(shipped / "README.md")
    assert (card.data.license, card.data.language, card.data.pipeline_tag) == ("apache-2.0", ["en"], "text-generation")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("mt_bench_protocol", 6.5, "chat")
    assert card.data.model_name == "My model"


def test_the_card_tells_the_lineage_scores_audits_and_limits(shipped):
    text = (shipped / "README.md").read_text()
    for part in (
        r"| chats | converse | teacher | 1 chats |", r"| sft | sft | base, chats | model, of 1 rows |",
        r"- **sft** \(sft\): epochs 2.0; adapter kind lora, rank 4", "| chats | empty | 2 |",
        r"| teacher | big-model | not stated | an endpoint | chats | unknown |", "| judge | strict | 3 |",
        r"| chat | mt\_bench | 6.5 | 6 to 7 | 80 | 95% | judge |",
        "| Overfitting | flagged | It went on too long. |", "fewer than 100 questions are rough: chat",
        "Not every answer could be scored: chat", "No recipe lies beside this card",
    ):  # fmt: skip
        assert part.replace(r"\(sft\)", "(sft)") in text, part


def test_a_recipe_that_says_something_else_stays_at_home_and_still_tells_licences(tmp_path):
    run = finished_run(tmp_path / "run")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nmodels:\n  big: {endpoint: 'http://localhost:1/v1', name: big, licence: no rivals}\n"
        "stages:\n  base: {kind: pretrain, data: p.jsonl, layers: 3, width: 32, heads: 2}\n"
        "  chats: {kind: converse, teacher: big, prompts: p.jsonl}\n"
        "  sft: {kind: sft, model: base, data: chats}\n"
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    written = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**written, "source": str(recipe)}))
    source = read_source(f"{run.path}:sft")
    assert source.recipe == ""
    assert "something else of stage base" in source.lost_recipe
    assert source.terms == {"big": "no rivals"}


def test_a_recipe_that_says_what_was_run_lies_beside_the_card(tmp_path):
    run = finished_run(tmp_path / "run")
    folder = (run.path / "base").resolve()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] = {"kind": "pretrain", "data": "texts.txt", "layers": 2, "width": 32, "heads": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "texts.txt").write_text("x")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r  # /home/somebody/notes\nstages:\n"
        "  base: {kind: pretrain, data: texts.txt, layers: 2, width: 32, heads: 2}\n"
    )
    written = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**written, "source": str(recipe)}))
    export(f"{run.path}:base", tmp_path / "out", Wish())
    assert (tmp_path / "out" / "recipe.yaml").read_text() == recipe.read_text().replace("/home/somebody/notes", "notes")
    assert "potstill run recipe.yaml" in (tmp_path / "out" / "README.md").read_text()
    recipe.write_text(recipe.read_text().replace("layers: 2", "layers: 3"))
    assert read_source(f"{run.path}:base").recipe == ""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("data: /home/me/x/rows.jsonl", "data: rows.jsonl"), ("~/models/a/", "..."), ("C:\\Users\\me\\a.txt", "a.txt"),
        ("https://example.com/v1/x", "https://example.com/v1/x"), ("me/model", "me/model"),
        ("../shared/data", "../shared/data"),
        ("[/srv/a/b.txt, /srv/a/c.txt]", "[b.txt, c.txt]"), ("1/2 and/or", "1/2 and/or"),
    ],
)  # fmt: skip
def test_paths_of_the_machine_are_cut(text, left):
    assert without_paths(text) == left


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
def test_an_adapter_gives_the_merged_models_logits_on_its_base(run, tmp_path):
    from peft import PeftModel

    export(f"{run}:base", tmp_path / "base", Wish())
    export(f"{run}:sft", tmp_path / "adapter", Wish(format="adapter", base=str(tmp_path / "base")))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    words = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    plain = logits(base, words)
    found = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), words)
    merged = logits(AutoModelForCausalLM.from_pretrained(run / "sft"), words)
    torch.testing.assert_close(found, merged, rtol=1e-4, atol=1e-4)
    assert (plain - merged).abs().max() > 0.01


def test_an_adapter_needs_a_base_with_a_name_and_a_stage_that_trained_one(run, tmp_path):
    with pytest.raises(ModelError, match="stage base, which has no name outside of this run"):
        export(f"{run}:sft", tmp_path / "x", Wish(format="adapter"))
    with pytest.raises(ModelError, match="no adapter lies beside it"):
        export(f"{run}:base", tmp_path / "x", Wish(format="adapter", base="me/x"))
    assert list(tmp_path.iterdir()) == []


def test_what_stands_there_is_kept_unless_it_is_an_export_and_that_is_asked(run, shipped, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    for wish in (Wish(), Wish(overwrite=True)):
        with pytest.raises(StorageError):
            export(f"{run}:sft", mine, wish)
    assert (mine / "letter.txt").read_text() == "dear"
    again = tmp_path / "again"
    shutil.copytree(shipped, again)
    with pytest.raises(StorageError, match="something stands there already"):
        export(f"{run}:sft", again, Wish())
    export(f"{run}:base", again, Wish(overwrite=True))
    assert json.loads((again / "potstill.json").read_text())["model"] == "base"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "mine"]


@pytest.mark.parametrize("error", [RuntimeError("cut"), OSError(28, "No space left on device")])
def test_a_folder_that_is_not_finished_is_not_there_and_the_old_one_stays(tmp_path, error):
    target = tmp_path / "x"
    with whole_folder(target, overwrite=False) as draft:
        (draft / "potstill.json").write_text("{}")

    def fail():
        with whole_folder(target, overwrite=True) as draft:
            (draft / "half").write_text("ha")
            raise error

    with pytest.raises((RuntimeError, StorageError)) as told:
        fail()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["potstill.json"]
    if isinstance(error, OSError):
        assert "disk is full" in str(told.value)


def test_changed_weights_and_unreadable_files_are_one_line(run, tmp_path, capsys):
    changed = tmp_path / "run"
    shutil.copytree(run, changed, symlinks=True)
    weights = changed / "sft" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert main(["export", f"{changed}:sft", "--to", str(tmp_path / "out")]) == 2
    assert "not those that were sealed" in capsys.readouterr().err
    assert main(["export", f"{run}:stf", "--to", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'sft'" in err
    assert err.count("\n") == 1
    if os.getuid():
        (changed / "base" / "tokenizer.json").chmod(0)
        assert main(["export", f"{changed}:base", "--to", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


DAMAGES = [
    ("model.safetensors", cut, "these weights are damaged"),
    ("model.safetensors", lambda file: file.write_bytes(b"null"), "these weights are damaged"),
    ("model.safetensors", Path.unlink, "it lacks model.safetensors"),
    ("tokenizer.json", cut, "this tokenizer is damaged"),
    ("tokenizer.json", Path.unlink, "there is no tokenizer"),
    ("config.json", lambda file: file.write_text("[1]"), "no JSON object"),
    ("tokenizer_config.json", lambda file: file.write_text("[" * 200_000), "this is not JSON"),
]


@pytest.mark.parametrize("form", ["hub", "gguf"])
@pytest.mark.parametrize(("name", "damage", "says"), DAMAGES)
def test_what_is_not_whole_is_not_shipped(tmp_path, name, damage, says, form):
    folder = small(tmp_path / "m")
    damage(folder / name)
    with pytest.raises(ModelError, match=says):
        export(str(folder), tmp_path / "out", Wish(form))
    assert not (tmp_path / "out").exists()


def test_a_sealed_model_whose_weights_changed_is_no_gguf_either(run, tmp_path):
    changed = tmp_path / "run"
    shutil.copytree(run, changed, symlinks=True)
    weights = changed / "sft" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(StorageError, match="not those that were sealed"):
        export(f"{changed}:sft", tmp_path / "out", Wish("gguf", "bf16"))


def test_an_export_that_lost_its_weights_is_not_pushed(shipped, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(shipped, folder)
    pack(folder, "me/x", private=True)
    cut(folder / "model.safetensors")
    with pytest.raises(ModelError, match="these weights are damaged"):
        pack(folder, "me/x", private=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no weights in this export any more"):
        pack(folder, "me/x", private=True)
    os.mkfifo(folder / "more.json")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        pack(folder, "me/x", private=True)


def test_what_a_killed_export_left_is_cleared_and_what_it_moved_comes_back(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for kind in ("draft", "old"):
        (tmp_path / f".out.{ended.pid}.{kind}").mkdir()
        (tmp_path / f".out.{ended.pid}.{kind}" / "potstill.json").write_text(kind)
    mine = tmp_path / f".out.{os.getppid()}.draft"
    mine.mkdir()
    with (
        pytest.raises(StorageError, match="something stands there already"),
        whole_folder(tmp_path / "out", overwrite=False),
    ):
        pass
    assert (tmp_path / "out" / "potstill.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, "out"]


@pytest.mark.parametrize(
    ("settings_", "says"), [({}, "no end token"), ({"eos_token_id": [2, 0], "pad_token_id": 0}, "padding token among")]
)
def test_a_model_that_would_not_stop_rightly_is_not_shipped(tmp_path, settings_, says):
    folder = small(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps(settings_))
    with pytest.raises(ModelError, match=says):
        check_sound(folder)


HOSTILE = "x\n---\nlicense: mit\n| a | b |\n# <script>alert(1)</script> [a](b) ```\n\u2028\x00"


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60) | st.just(HOSTILE))
def test_no_name_breaks_out_of_the_card(text):
    text = text or "x"
    said = Said(text, text, ("en",), text, "adapter", base=text, found=(text,))
    card = render(said, Source(text, Path("x"), lost_recipe=text))
    _, front, body = re.split(r"^---$\n?", card, maxsplit=2, flags=re.MULTILINE)
    found = yaml.safe_load(front)
    assert set(found) <= {"license", "license_name", "language", "pipeline_tag", "library_name", "base_model", "tags"}
    fences = [line for line in body.splitlines() if line.startswith("```")]
    assert fences == ["```python", "```"]
    outside = re.sub(r"^```python\n.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside
    assert "\n---" not in body
    heads = [line for line in outside.splitlines() if line.startswith("#")]
    assert len(heads) == 5
    assert compile(re.search(r"```python\n(.*?)\n```$", body, re.DOTALL | re.MULTILINE)[1], "card", "exec")


def test_push_refuses_what_should_stay(run, shipped, tmp_path):
    good = pack(shipped, "me/x", private=True)
    assert good.kind == "model"
    assert dict(good.files)["model.safetensors"] == (shipped / "model.safetensors").stat().st_size

    def refused(name: str, text: str, says: str) -> None:
        folder = tmp_path / hashlib.md5(f"{name}{text}".encode()).hexdigest()
        shutil.copytree(shipped, folder)
        if text:
            (folder / name).write_text(text)
        else:
            (folder / name).unlink()
        with pytest.raises(DataError, match=says):
            pack(folder, "me/x", private=True)

    refused("README.md", "", "no card")
    refused("README.md", "# hello\n", "no front matter")
    refused("README.md", "---\ntags: [a]\n---\n", "no licence")
    refused("README.md", "---\nlicense: unknown\n---\n", "no licence")
    refused("README.md", "---\nlicense: [\n---\n", "no YAML")
    refused("journal.sqlite-wal", "x", "never pushed")
    refused("server.pem", "x", "never pushed")
    refused(".env", "x", "never pushed")
    refused("notes.md", "x\nkey hf_" + "a" * 34, "notes.md:2: this looks like a key")
    refused("notes.md", f"see {shipped}", "a path of this machine")
    refused("config.json", '{"_name_or_path": "/home/me/models/x"}', "a path of this machine")
    link = tmp_path / "linked"
    shutil.copytree(shipped, link)
    (link / "extra.md").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="this is a link"):
        pack(link, "me/x", private=True)
    with pytest.raises(DataError, match="run's folder"):
        pack(run, "me/x", private=True)
    with pytest.raises(DataError, match="sealed folder"):
        pack((run / "sft").resolve(), "me/x", private=True)
    for name in ("", "../x", "a/b/c", "a b", "me/x--y", "-x"):
        with pytest.raises(DataError, match="no name of a repository"):
            pack(shipped, name, private=True)
