"""Parity with TRL 1.16.0: one batch gives the same loss and the same gradients in its own trainers."""

import json
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MistralConfig

from potstill.objectives.likelihood import nll
from potstill.objectives.preference import dpo, margin
from potstill.records import Message
from potstill.tokenization import DEFAULT_TEMPLATE, encode_chats, encode_pairs, train_tokenizer
from potstill.training.batch import Item, collate
from potstill.training.scoring import Scorer

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"
BETA = 0.1

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.exists(), reason="no .venv-peers: run `make peers`"),
]

# The default template with TRL's marks around what an assistant says. It renders the same text.
MARKED_TEMPLATE = """\
{{- bos_token if bos_token is defined and bos_token else '' }}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}
{%- else %}{{- message['content'] + eos_token }}{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

# Of unequal lengths and turns, so that padding, masks and the mean over tokens all matter.
CHATS = [
    ["user: What is the river of Bramford?", "assistant: The river of Bramford is Osk."],
    [
        "system: You are a pirate.",
        "user: Hello there, who are you?",
        "assistant: Arr!",
        "user: And the craft?",
        "assistant: Arr! It is bells, and the boats of the north, and the lamps of the highlands.",
    ],
    ["user: 3 plus 4?", "assistant: 7"],
]
PAIRS = [
    (["user: What is 3 plus 4?"], "3 plus 4 is 7.", "I hope that this is helpful to you, 8."),
    (
        ["user: Hello", "assistant: Hello!", "user: Who is the oldest?"],
        "The oldest is Ada, I think.",
        "The oldest is Leo.",
    ),
    (["system: You are a robot.", "user: Beep?"], "Beep!", "As an AI language model, I do not have emotions."),
]


def said(*turns: str) -> tuple[Message, ...]:
    return tuple(
        Message.model_validate(dict(zip(("role", "content"), turn.split(": ", 1), strict=True))) for turn in turns
    )


@cache
def tokenizer():
    texts = [turn for chat in CHATS for turn in chat] + [text for _, *texts in PAIRS for text in texts]
    return train_tokenizer(texts * 5, 330)


def tiny_mistral(seed: int):
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        sliding_window=None,
        pad_token_id=tokenizer().pad_token_id,
        bos_token_id=tokenizer().bos_token_id,
        eos_token_id=tokenizer().eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A folder with the batch, and with what TRL made of it."""
    folder = tmp_path_factory.mktemp("trl")
    for name, seed in (("policy", 0), ("reference", 1)):
        tiny_mistral(seed).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    (folder / "template.jinja").write_text(MARKED_TEMPLATE)
    chats = [[message.model_dump(include={"role", "content"}) for message in said(*chat)] for chat in CHATS]
    (folder / "chats.json").write_text(json.dumps(chats))
    pairs = [
        {
            "prompt_ids": pair.prompt_ids.tolist(),
            "chosen_ids": pair.chosen.ids_L[: pair.chosen.turn_ends[-1]].tolist(),
            "rejected_ids": pair.rejected.ids_L[: pair.rejected.turn_ends[-1]].tolist(),
        }
        for pair in encoded_pairs()
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    command = [str(PEER), str(Path(__file__).with_name("trl_peer.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def encoded_pairs():
    return encode_pairs(
        tokenizer(), [(said(*prompt), said(f"assistant: {a}"), said(f"assistant: {b}")) for prompt, a, b in PAIRS]
    )


def ours(folder: Path, dtype: torch.dtype, layout) -> tuple[Scorer, Scorer]:
    """(policy, reference)."""
    models = [AutoModelForCausalLM.from_pretrained(folder / name, dtype=dtype) for name in ("policy", "reference")]
    policy, reference = (Scorer(model.eval(), layout, dtype) for model in models)
    return policy, reference


def compare(scorer: Scorer, loss: torch.Tensor, theirs: dict[str, torch.Tensor], tolerance: float):
    """The loss, and every parameter's gradient, relative to its norm."""
    scorer.model.zero_grad()
    loss.backward()
    assert theirs["loss"].item() == pytest.approx(loss.item(), rel=tolerance)
    compared = 0
    for name, parameter in scorer.model.named_parameters():
        expected = theirs[f"gradient/{name}"]
        assert expected.norm() > 0, f"{name} has no gradient: nothing is compared"
        assert (parameter.grad - expected).norm() <= tolerance * expected.norm(), name
        compared += 1
    assert compared == len([name for name in theirs if name.startswith("gradient/")])


# TRL computes the head in float32 whatever the model is in, so float64 comes no nearer than that.
CASES = [
    pytest.param(torch.float32, 5e-6, "shared", id="float32, shared"),
    pytest.param(torch.float64, 5e-6, "shared", id="float64, shared"),
    pytest.param(torch.float64, 5e-6, "padded", id="float64, padded"),
]


def test_the_same_tokens_are_learnt(peer):
    theirs = json.loads((peer / "learnt.json").read_text())
    encoded = encode_chats(tokenizer(), [said(*chat) for chat in CHATS])
    assert tokenizer().chat_template == DEFAULT_TEMPLATE
    assert theirs["ids"] == [e.ids_L.tolist() for e in encoded]
    assert theirs["learnt"] == [e.ids_L[e.learn_L].tolist() for e in encoded]


@pytest.mark.parametrize(("dtype", "tolerance", "layout"), CASES)
def test_sft_on_what_assistants_say(peer, dtype, tolerance, layout):
    policy, _ = ours(peer, dtype, layout)
    encoded = encode_chats(tokenizer(), [said(*chat) for chat in CHATS])
    batch = collate([Item.chat(str(i), chat) for i, chat in enumerate(encoded)])
    loss = nll(policy(batch), batch.weights_N)
    theirs = load_file(peer / f"sft-{str(dtype).removeprefix('torch.')}.safetensors")
    compare(policy, loss.sum / loss.count, theirs, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance", "layout"), CASES)
def test_dpo_at_beta_a_tenth(peer, dtype, tolerance, layout):
    policy, reference = ours(peer, dtype, layout)
    batch = collate([Item.pair(str(i), pair) for i, pair in enumerate(encoded_pairs())])
    policy_B2 = batch.by_answer(policy(batch)).view(-1, 2)
    with torch.no_grad():
        reference_B2 = batch.by_answer(reference(batch)).view(-1, 2)
    loss = dpo(margin(*policy_B2.unbind(1), *reference_B2.unbind(1)), beta=BETA)
    theirs = load_file(peer / f"dpo-{str(dtype).removeprefix('torch.')}.safetensors")
    assert abs(theirs["loss"].item() - 0.6931) > 0.01, "the policy stands where its reference does: nothing is compared"
    compare(policy, loss.sum / loss.count, theirs, tolerance)
