"""GGUF files: another reader finds the same model in them, and what llama.cpp would read otherwise is refused."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from shipped_models import finished_run, logits, small, tokenizer
from tokenizer_families import CHATML, TEXTS, byte_level, family, metaspace
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from potstill.cli import main
from potstill.errors import ModelError
from potstill.shipping import measured
from potstill.shipping.arches import read_tensors
from potstill.shipping.pieces import GPT2, LLAMA3, QWEN2
from potstill.shipping.twin import Twin, difference, hard_texts
from potstill.shipping.vocabulary import CONTROL, USER_DEFINED, read_vocabulary
from potstill.tokens.tokenization import DEFAULT_TEMPLATE, backend_of, train_tokenizer

ARCHES = ("llama", "mistral", "qwen2", "qwen3")
LLAMA_3_STRETCH = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def pieces(words):
    return [backend_of(words).decode([index], skip_special_tokens=False) for index in range(len(words))]


def checked(words):
    vocabulary = read_vocabulary(words, len(words), [words.eos_token_id])
    return vocabulary, difference(vocabulary, backend_of(words), hard_texts(vocabulary, pieces(words)))


def foreign(expression, *, nfc=False, bos=False):
    """A byte-level BPE that cuts as a family of the Hub does."""
    made = Tokenizer(models.BPE(ignore_merges=expression == LLAMA3))
    made.normalizer = normalizers.NFC() if nfc else None
    cut = pre_tokenizers.Split(Regex(expression), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = DEFAULT_TEMPLATE
    return fast


def qwens():
    """Beside a model of theirs, transformers reads no other."""
    words = foreign(QWEN2, nfc=True)
    words.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    words.chat_template = CHATML
    return words


def sentencepiece(*, legacy):
    """Merges as sentencepiece's own are listed: every two tokens that make a third."""
    fast = metaspace(420, legacy=legacy)
    told = json.loads(fast.backend_tokenizer.to_str())
    vocab, order = told["model"]["vocab"], {}
    for rank, merge in enumerate(told["model"]["merges"]):
        order.setdefault("".join(merge), rank)
    told["model"]["merges"] = [
        [whole[:cut], whole[cut:]]
        for whole in sorted(order, key=order.__getitem__)
        for cut in range(1, len(whole))
        if whole[:cut] in vocab and whole[cut:] in vocab
    ]
    if not legacy:
        told["pre_tokenizer"]["prepend_scheme"] = "first"
    made = Tokenizer.from_str(json.dumps(told))
    again = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    again.chat_template = DEFAULT_TEMPLATE
    return again


@pytest.mark.parametrize("vocabulary", [280, 320, 500])
def test_our_own_tokenizers_become_the_same_tokens(vocabulary):
    words = byte_level(vocabulary)
    told, wrong = checked(words)
    assert wrong == ""
    assert (told.cut.pre, told.add_bos, told.special) == ("gpt-2", False, {"bos": 1, "eos": 2, "pad": 0})


def test_runs_of_line_breaks_stay_whole():
    words = train_tokenizer(["a\n\nb 5\n\nc\n\nd  e"] * 20, 270)
    told, wrong = checked(words)
    assert wrong == ""
    assert told.tokens.count("\n\n") == 1
    assert told.kinds[told.tokens.index("\n\n")] == USER_DEFINED
    assert Twin(told).ids("a\n\n\nb") == backend_of(words).encode("a\n\n\nb", add_special_tokens=False).ids


def test_runs_that_cannot_stay_whole_are_refused_by_the_text_that_shows_it():
    words = train_tokenizer(["a\n\nb", "a\n\n\n\nb", "c\n\n\n\n\n\nd"] * 20, 275)
    assert "llama.cpp would read" in checked(words)[1]


@pytest.mark.parametrize(
    ("words", "pre"),
    [
        (lambda: foreign(QWEN2, nfc=True), "qwen2"), (lambda: foreign(LLAMA3), "llama-bpe"),
        (lambda: foreign(GPT2), "gpt-2"), (lambda: sentencepiece(legacy=True), None),
        (lambda: sentencepiece(legacy=False), None),
    ],
)  # fmt: skip
def test_the_hubs_tokenizers_become_the_same_tokens(words, pre):
    told, wrong = checked(words())
    assert wrong == ""
    assert (told.cut.pre if told.cut else None) == pre
    assert bool(told.notes) == (told.nfc or bool(told.opening))


@pytest.mark.parametrize(
    ("name", "says"),
    [("greedy", "knows none like"), ("prefix", "knows none like"), ("unigram", "Unigram"), ("words", "WordLevel")],
)
def test_tokenizers_that_llama_cpp_does_not_have_are_refused(name, says):
    with pytest.raises(ModelError, match=says):
        read_vocabulary(family(name), len(family(name)), [3])


def test_merges_that_llama_cpp_would_add_to_are_noticed():
    told = json.loads(sentencepiece(legacy=True).backend_tokenizer.to_str())
    merges = told["model"]["merges"]
    lasts = {"".join(merge): place for place, merge in enumerate(merges)}
    told["model"]["merges"] = [
        merge for place, merge in enumerate(merges) if place % 3 or lasts["".join(merge)] == place
    ]
    words = sentencepiece(legacy=True)
    fewer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fewer.chat_template = words.chat_template
    assert checked(fewer)[1] != "" or len(told["model"]["merges"]) == len(merges)


def test_the_start_token_is_never_put_twice():
    words = foreign(QWEN2, bos=True)
    assert words("x")["input_ids"][0] == words.bos_token_id
    assert not read_vocabulary(words, len(words), [2]).add_bos  # the template writes it
    words.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    assert read_vocabulary(words, len(words), [2]).add_bos


def test_end_tokens_beyond_three_and_rows_without_tokens():
    words = tokenizer()
    told = read_vocabulary(words, len(words) + 3, [2, 5, 7])
    assert (told.special["eos"], told.special["eot"], told.special["eom"]) == (2, 5, 7)
    assert told.tokens[-1] == f"[PAD{len(words) + 2}]"
    assert told.kinds[1] == CONTROL
    with pytest.raises(ModelError, match="4 tokens end its answers"):
        read_vocabulary(words, len(words), [2, 5, 7, 8])


class TestFiles:
    """What needs llama.cpp's own package."""

    @pytest.fixture(autouse=True)
    def _package(self, monkeypatch):
        self.gguf = pytest.importorskip("gguf", reason="no gguf: pip install 'potstill[gguf]'")
        monkeypatch.setattr(measured, "has_llama", lambda: False)

    def write(self, folder, out, kind="f32"):
        from potstill.shipping.gguf_file import Naming, write_gguf

        return write_gguf(folder, out, kind, Naming("a name", "apache-2.0", ("en",)))

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("arch", ARCHES)
    @pytest.mark.parametrize("tied", [True, False])
    def test_transformers_reads_the_same_model_out_of_it(self, tmp_path, arch, tied):
        folder = small(tmp_path / "m", arch, qwens() if arch.startswith("qwen") else None, tied=tied)
        self.write(folder, tmp_path / "m.gguf")
        words = AutoTokenizer.from_pretrained(folder)
        expected = logits(AutoModelForCausalLM.from_pretrained(folder), words)
        # Of Qwen 3 it does not read the width of heads; Mistral it reads as Llama.
        config = {"config": AutoConfig.from_pretrained(folder)} if arch == "qwen3" else {}
        read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32, **config)
        found = logits(read, words)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_types_and_sizes(self, tmp_path):
        folder = small(tmp_path / "m")
        sizes = []
        for kind in ("f32", "bf16", "f16", "q8_0", "q5_1", "q4_0"):
            written = self.write(folder, tmp_path / f"{kind}.gguf", kind)
            types = {t.name: t.tensor_type.name for t in self.gguf.GGUFReader(written.path).tensors}
            assert types["token_embd.weight"] == kind.upper()
            assert types["output_norm.weight"] == "F32"
            sizes.append(written.path.stat().st_size)
        assert sizes[0] > sizes[1] == sizes[2] > sizes[3] > sizes[4] > sizes[5]

    def test_the_same_model_gives_the_same_bytes_and_says_what_it_is(self, tmp_path):
        folder = small(tmp_path / "m")
        hashes = {hashlib.sha256(self.write(folder, tmp_path / n).path.read_bytes()).hexdigest() for n in ("a", "b")}
        assert len(hashes) == 1
        fields = self.gguf.GGUFReader(tmp_path / "a").fields
        assert fields["tokenizer.chat_template"].contents() == DEFAULT_TEMPLATE
        assert fields["general.name"].contents() == "a name"
        assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
        assert fields["tokenizer.ggml.add_bos_token"].contents() is False

    def test_a_window_bounds_the_context_and_a_stretch_is_written(self, tmp_path):
        from potstill.shipping.arches import ROPE_FACTORS, read_arch

        folder = small(tmp_path / "m", "mistral", sliding_window=32)
        written = self.write(folder, tmp_path / "m.gguf")
        assert "slides over 32 tokens" in written.notes[0]
        assert self.gguf.GGUFReader(written.path).fields["llama.context_length"].contents() == 32
        long = self.write(small(tmp_path / "n", "llama", rope_parameters=LLAMA_3_STRETCH), tmp_path / "n.gguf")
        (factors,) = (t.data for t in self.gguf.GGUFReader(long.path).tensors if t.name == ROPE_FACTORS)
        assert factors[0] == 1
        assert factors[-1] == pytest.approx(8)
        config = AutoConfig.from_pretrained(folder)
        config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
        with pytest.raises(ModelError, match="stretched by yarn"):
            read_arch(config, "m")

    def test_other_families_name_llama_cpps_own_converter(self, tmp_path):
        folder = small(tmp_path / "m", "gemma2")
        with pytest.raises(ModelError, match=r"family gemma2.*convert_hf_to_gguf"):
            self.write(folder, tmp_path / "m.gguf")

    def test_numbers_too_large_for_halves(self, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = small(tmp_path / "m")
        weights = load_file(folder / "model.safetensors")
        weights["model.embed_tokens.weight"][5, 5] = 1e6
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match="beyond 65,504"):
            self.write(folder, tmp_path / "m.gguf", "f16")
        self.write(folder, tmp_path / "n.gguf", "bf16")

    def test_the_verb(self, tmp_path, capsys):
        run = finished_run(tmp_path / "run").path
        assert (
            main(["export", f"{run}:sft", "--to", str(tmp_path / "x"), "--format", "gguf", "--gguf-type", "Q8_0"]) == 0
        )
        out = capsys.readouterr().out
        assert "The weights are in q8_0." in out
        assert "llama.cpp itself was not asked" in out
        assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
            "README.md",
            "potstill.json",
            "sft-q8_0.gguf",
        ]
        assert "llama-server -m sft-q8_0.gguf" in (tmp_path / "x" / "README.md").read_text()
        assert (
            main(["export", f"{run}:sft", "--to", str(tmp_path / "y"), "--format", "gguf", "--gguf-type", "q4k"]) == 2
        )
        assert "Choose one of: f32" in capsys.readouterr().err
        assert not (tmp_path / "y").exists()


def test_damaged_weights_are_one_line(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(
        ModelError, match=r"model.safetensors: these weights are damaged: .*Get the whole of them again"
    ):
        list(read_tensors(tmp_path, SimpleNamespace(name="llama", rope_factors=None), str))
