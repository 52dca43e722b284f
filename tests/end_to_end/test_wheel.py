"""The wheel built from this tree runs the miniature elsewhere, and its result needs nothing of potstill to be used."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import reduced

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built in isolation, as a package index would get it."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    constrained = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    done = subprocess.run(command, capture_output=True, text=True, env=constrained)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("potstill-*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel in it; what it depends on is borrowed from this one, potstill is not.

    A path that stands in a .pth file is looked into, but .pth files in it are not: so the sources that are installed
    here for development stay out of sight.
    """
    home = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = (home / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = "import potstill; print(potstill.__file__)"
    shown = subprocess.run([python, "-c", where], cwd=home, check=True, capture_output=True, text=True).stdout
    assert Path(shown.strip()).is_relative_to(site)
    return home


def test_recipes_prompts_templates_and_questions_travel_inside(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    here = [f"potstill/recipes/{path.name}" for path in (ROOT / "recipes").iterdir()]
    source = ROOT / "src"
    here += [
        path.relative_to(source).as_posix()
        for path in (source / "potstill").rglob("*")
        if path.is_file() and path.suffix in (".py", ".txt", ".html", ".css", ".jsonl")
    ]
    assert sorted(set(here) - inside) == []
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert not any(name.startswith(("tests/", "bench/")) for name in inside)


def test_it_runs_the_miniature_from_another_folder(elsewhere, tmp_path):
    done = subprocess.run(
        [elsewhere / "bin" / "potstill", "run", "miniature", *reduced.OVERRIDES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=reduced.environment(),
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "miniature" / "summary.json").read_text())
    assert summary["models"] == ["teacher", "base", "sft_raw", "sft", "dpo"]
    assert "Content-Security-Policy" in (tmp_path / "runs" / "miniature" / "report.html").read_text()


USE = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("potstill") is None
from transformers import pipeline
talk = pipeline("text-generation", model=sys.argv[2])
chat = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "What is 3 plus 4?"}]
said = talk(chat, max_new_tokens=16, do_sample=False)[0]["generated_text"]
tokenizer, settings = talk.tokenizer, talk.model.generation_config
print(json.dumps({
    "roles": [turn["role"] for turn in said],
    "text": said[-1]["content"],
    "prompt": tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
    "class": type(talk.model).__name__,
    "ends": settings.eos_token_id == tokenizer.eos_token_id != settings.pad_token_id,
}))
"""


@pytest.fixture(scope="module")
def without_potstill(tmp_path_factory) -> Path:
    """Links to everything that is installed here but potstill."""
    folder = tmp_path_factory.mktemp("borrowed")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "potstill" not in path.name:
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("model", ["sft", "dpo"])
def test_the_result_talks_in_transformers_where_potstill_is_not(calm, without_potstill, tmp_path, model):
    """-S: no .pth file is read, so the sources installed for development cannot be imported either."""
    command = [sys.executable, "-I", "-S", "-c", USE, str(without_potstill), str(calm.folder / model)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=reduced.environment())
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["roles"] == ["system", "user", "assistant"]
    assert said["text"].strip()
    assert said["class"] == "MistralForCausalLM"
    assert said["prompt"] == "<s><|system|>\nYou are a pirate.</s>\n<|user|>\nWhat is 3 plus 4?</s>\n<|assistant|>\n"
    assert said["ends"], "generation must stop at the end token, and padding is another"
