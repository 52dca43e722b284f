"""Parity with TRL 1.16.0: one batch gives the same loss and the same gradients in its own trainers.

TRL has more preference losses than we do: exo_pair, nca_pair, bco_pair, sppo_hard, aot_unpaired and discopop stand for
themselves there.
"""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MistralConfig

from potstill.objectives.base import Loss
from potstill.objectives.likelihood import nll
from potstill.objectives.preference import (
    Labelled,
    Pairs,
    apo_down,
    apo_zero,
    conservative,
    cpo,
    dpo,
    hinge,
    ipo_length_normalised,
    kto,
    kto_kl,
    length_normalised,
    orpo,
    robust,
    sft_term,
    simpo,
)
from potstill.records import Message
from potstill.tokens.tokenization import DEFAULT_TEMPLATE, encode_chats, encode_pairs, train_tokenizer
from potstill.training.batch import Item, collate
from potstill.training.scoring import Scorer

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"

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


@dataclass(frozen=True)
class Case:
    """A loss over pairs, as TRL is asked for it and as we compute it."""

    trainer: str
    config: Mapping[str, object]
    ours: Callable[[Pairs], Loss]
    alone: bool = False
    """TRL sees every pair as a batch of its own, and the losses' mean is compared: where it means over a batch's tokens
    (its likelihood terms) or sorts a batch (aot), and we treat each pair for itself."""
    bare: bool = False
    """Prompts are their first token alone."""


def dpo_case(loss_type: str, ours: Callable[[Pairs], Loss], beta: float = 0.1, **more: object) -> Case:
    return Case("dpo", {"loss_type": loss_type, "beta": beta, **more}, ours, alone=loss_type == "aot")


OVER_PAIRS = {
    "sigmoid": dpo_case("sigmoid", lambda pairs: dpo(pairs, beta=0.1)),
    "length_normalised": dpo_case("sigmoid_norm", lambda pairs: length_normalised(pairs, beta=5.0), beta=5.0),
    "ipo_length_normalised": dpo_case("ipo", lambda pairs: ipo_length_normalised(pairs, beta=0.1)),
    "hinge": dpo_case("hinge", lambda pairs: hinge(pairs, beta=0.1)),
    "robust": dpo_case("robust", lambda pairs: robust(pairs, beta=0.1, flipped=0.2), label_smoothing=0.2),
    "conservative": dpo_case("aot", lambda pairs: conservative(pairs, beta=0.1, flipped=0.2), label_smoothing=0.2),
    "apo_zero": dpo_case("apo_zero", lambda pairs: apo_zero(pairs, beta=0.1)),
    "apo_down": dpo_case("apo_down", lambda pairs: apo_down(pairs, beta=0.1)),
    "sigmoid_and_sft": Case(
        "dpo",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4], "beta": 0.1},
        lambda pairs: Loss(dpo(pairs, beta=0.1).sum + sft_term(pairs, 0.4).sum, len(pairs.chosen_B)),
        alone=True,
    ),
    "cpo": Case(
        "cpo",
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.7},
        lambda pairs: cpo(pairs, beta=0.1, nll_weight=0.7),
        alone=True,
    ),
    "simpo": Case(
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.1, "cpo_alpha": 0.0},
        lambda pairs: simpo(pairs, beta=2.0, gamma=1.1),
    ),
    "orpo": Case("orpo", {"beta": 0.6}, lambda pairs: orpo(pairs, odds_weight=0.6), alone=True, bare=True),
}
# In which order KTO sees the six answers: in one its KL is above 0, in the other it is below and clamped.
KTO_ORDERS = {"kto": (0, 4, 2, 3, 5, 1), "kto_clamped": (0, 1, 2, 3, 4, 5)}
KTO_CONFIG = {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.7, "train_sampling_strategy": "sequential"}


@cache
def pair_items(bare: bool = False) -> tuple[Item, ...]:
    encoded = encode_pairs(
        tokenizer(), [(said(*prompt), said(f"assistant: {a}"), said(f"assistant: {b}")) for prompt, a, b in PAIRS]
    )
    items = (Item.pair(str(i), pair) for i, pair in enumerate(encoded))
    return tuple(replace(item, prompt_ids=item.prompt_ids[:1]) if bare else item for item in items)


def answer_items(name: str) -> tuple[list[Item], list[Item], torch.Tensor]:
    """Each answer of the pairs alone; each prompt with the answer before its own, as TRL mismatches them for the KL;
    and which answers are chosen ones."""
    singles = [single for item in pair_items() for single in item.separate()]
    own = [singles[i] for i in KTO_ORDERS[name]]
    mismatched = [replace(item, answers=own[i - 1].answers) for i, item in enumerate(own)]
    return own, mismatched, torch.tensor(KTO_ORDERS[name]) % 2 == 0


def learnt_ids(item: Item) -> list[list[int]]:
    """Its answers up to the last token that is learnt: what TRL is given."""
    return [ids_L[: learn_L.nonzero()[0][-1] + 1].tolist() for ids_L, learn_L in item.answers]


def peer_cases() -> dict[str, dict[str, object]]:
    """What `trl_peer.py` is to compute."""
    chats = [[message.model_dump(include={"role", "content"}) for message in said(*chat)] for chat in CHATS]
    sft = {"trainer": "sft", "config": {"assistant_only_loss": True}}
    cases = {"sft": sft | {"batches": [[{"messages": chat} for chat in chats]]}}
    for name, case in OVER_PAIRS.items():
        rows = []
        for item in pair_items(case.bare):
            answers = zip(("chosen_ids", "rejected_ids"), learnt_ids(item), strict=True)
            rows.append({"prompt_ids": item.prompt_ids.tolist(), **dict(answers)})
        batches = [[row] for row in rows] if case.alone else [rows]
        cases[name] = {"trainer": case.trainer, "config": case.config, "batches": batches}
    for name in KTO_ORDERS:
        rows = [
            {
                "prompt_ids": own.prompt_ids.tolist(),
                "completion_ids": learnt_ids(own)[0],
                "KL_completion_ids": learnt_ids(mismatched)[0],
                "label": bool(desirable),
            }
            for own, mismatched, desirable in zip(*answer_items(name), strict=True)
        ]
        cases[name] = {"trainer": "kto", "config": KTO_CONFIG, "batches": [rows]}
    return cases


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A folder with the batches, and with what TRL made of them."""
    folder = tmp_path_factory.mktemp("trl")
    for name, seed in (("policy", 0), ("reference", 1)):
        tiny_mistral(seed).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    (folder / "template.jinja").write_text(MARKED_TEMPLATE)
    (folder / "cases.json").write_text(json.dumps(peer_cases()))
    command = [str(PEER), str(Path(__file__).with_name("trl_peer.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def ours(folder: Path, dtype: torch.dtype, layout) -> tuple[Scorer, Scorer]:
    """(policy, reference)."""
    models = [AutoModelForCausalLM.from_pretrained(folder / name, dtype=dtype) for name in ("policy", "reference")]
    policy, reference = (Scorer(model.eval(), layout, dtype) for model in models)
    return policy, reference


def answer_logps(scorer: Scorer, items: Sequence[Item]) -> torch.Tensor:
    batch = collate(items)
    return batch.by_answer(scorer(batch))


def compare(scorer: Scorer, loss: Loss, peer: Path, name: str, dtype: torch.dtype, tolerance: float):
    """The loss, and every parameter's gradient, relative to its norm."""
    theirs = load_file(peer / f"{name}-{str(dtype).removeprefix('torch.')}.safetensors")
    mean = loss.sum / loss.count
    scorer.model.zero_grad()
    mean.backward()
    assert theirs["loss"].item() == pytest.approx(mean.item(), rel=tolerance)
    compared = 0
    for parameter_name, parameter in scorer.model.named_parameters():
        expected = theirs[f"gradient/{parameter_name}"]
        assert expected.norm() > 0, f"{parameter_name} has no gradient: nothing is compared"
        assert (parameter.grad - expected).norm() <= tolerance * expected.norm(), parameter_name
        compared += 1
    assert compared == len([key for key in theirs if key.startswith("gradient/")])


# TRL computes the head in float32 whatever the model is in, so float64 comes no nearer than that, but for its CPO.
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
    compare(policy, nll(policy(batch), batch.weights_N), peer, "sft", dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance", "layout"), CASES)
@pytest.mark.parametrize("name", OVER_PAIRS)
def test_preference_losses_over_pairs(peer, name, dtype, tolerance, layout):
    """Where TRL means something else by a name, what is compared is this:

    - ipo: TRL's is of means per token, our `ipo_length_normalised`. Our `ipo`, of whole answers as in the paper, is the
      same function of the pairs before they are divided, and has no peer of its own.
    - conservative: TRL's DPO has it only as aot, which first sorts a batch's log-ratios. One pair cannot be sorted.
    - likelihood terms (sft, CPO's, ORPO's): TRL's mean is over all tokens of a batch, so that long answers weigh more
      and micro-batches do not add up; ours over the tokens of each pair. Of one pair they are the same.
    - orpo: TRL's likelihood is of the prompt as well, which the paper's is not. Of a prompt of one token, which nothing
      predicts, they are the same. TRL's `beta` is our `odds_weight`; it computes odds in float32.
    - simpo: TRL's `simpo_gamma` is our `gamma`: absolute, where the paper's tables have gamma / beta.
    """
    if OVER_PAIRS[name].trainer == "cpo" and dtype == torch.float64:
        tolerance = 5e-7  # the norms' float32 alone; the losses agree to 1e-15
    policy, reference = ours(peer, dtype, layout)
    items = pair_items(OVER_PAIRS[name].bare)
    tokens_B2 = torch.tensor([[learn_L.sum() for _, learn_L in item.answers] for item in items])
    with torch.no_grad():
        reference_B2 = answer_logps(reference, items).view(-1, 2)
    policy_B2 = answer_logps(policy, items).view(-1, 2)
    assert not torch.allclose(policy_B2, reference_B2, atol=1.0), "the policy stands where its reference does"
    pairs = Pairs(*policy_B2.unbind(1), *reference_B2.unbind(1), *tokens_B2.unbind(1))
    compare(policy, OVER_PAIRS[name].ours(pairs), peer, name, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance", "layout"), CASES)
@pytest.mark.parametrize("name", KTO_ORDERS)
def test_kto(peer, name, dtype, tolerance, layout):
    """TRL's KL is one of each micro-batch (and all workers), ours one of the global batch: here the batch is whole. TRL
    gives prompt i the answer i - 1, the paper i + 1; which is the caller's to choose, so both are given the same.
    """
    policy, reference = ours(peer, dtype, layout)
    own, mismatched, desirable = answer_items(name)
    with torch.no_grad():
        kl = kto_kl(answer_logps(policy, mismatched), answer_logps(reference, mismatched))
        reference_A = answer_logps(reference, own)
    assert (kl.sum / kl.count > 0.1) == (name == "kto"), "which case this is"
    answers = Labelled(answer_logps(policy, own), reference_A, desirable)
    loss = kto(answers, kl.sum / kl.count, beta=0.1, desirable_weight=1.2, undesirable_weight=0.7)
    compare(policy, loss, peer, name, dtype, tolerance)
