"""Parity with TRL 1.16.0's GOLD where it is right: the same spans give the same loss and the same gradients.

`potstill.objectives.cross_tokenizer` says where it is not.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.objectives.cross_tokenizer import Compared, Shared, merged, uld

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.exists(), reason="no .venv-peers: run `make peers`"),
]

# The bytes of each token: "the", " cat", " s|at", "!|?", and the first two spans are a token on both sides.
STUDENT_ENDS, TEACHER_ENDS = [3, 7, 9, 11, 12, 13], [3, 7, 11, 13]
SPANS = {"student": [(0, 1), (1, 2), (2, 4), (4, 6)], "teacher": [(0, 1), (1, 2), (2, 3), (3, 4)]}
SINGLE = 2
STUDENT_VOCABULARY = ["the", " cat", " s", "at", "!", "?", " sat", "dog"]
TEACHER_VOCABULARY = ["?", " cat", "the", "!?", " sat", "a", "bird", "!", "fish", "of", "or"]
BETA, MATCHED, UNMATCHED = 0.3, 0.6, 0.4


def given() -> dict[str, Tensor]:
    torch.manual_seed(0)
    student_ids = [STUDENT_VOCABULARY.index(token) for token in ("the", " cat", " s", "at", "!", "?")]
    teacher_ids = [TEACHER_VOCABULARY.index(token) for token in ("the", " cat", " sat", "!?")]
    return {
        "student": torch.randn(len(student_ids), len(STUDENT_VOCABULARY)).double(),
        "teacher": torch.randn(len(teacher_ids), len(TEACHER_VOCABULARY)).double(),
        "student_ids": torch.tensor(student_ids),
        "teacher_ids": torch.tensor(teacher_ids),
        "student_offsets": torch.tensor(list(zip([0, *STUDENT_ENDS[:-1]], STUDENT_ENDS, strict=True))),
        "teacher_offsets": torch.tensor(list(zip([0, *TEACHER_ENDS[:-1]], TEACHER_ENDS, strict=True))),
    }


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("gold")
    save_file(given(), folder / "given.safetensors")
    vocabularies = {"student": STUDENT_VOCABULARY, "teacher": TEACHER_VOCABULARY}
    document = {
        "vocabularies": {side: {token: i for i, token in enumerate(tokens)} for side, tokens in vocabularies.items()},
        "settings": {
            "uld_use_hybrid_loss": True,
            "uld_hybrid_matched_weight": MATCHED,
            "uld_hybrid_unmatched_weight": UNMATCHED,
            "beta": BETA,
        },
        "single": SINGLE,
    }
    (folder / "given.json").write_text(json.dumps(document))
    subprocess.run([str(PEER), str(Path(__file__).with_name("gold_peer.py")), str(folder)], check=True, timeout=600)
    return load_file(folder / "said.safetensors")


def shared() -> Shared:
    both = [token for token in STUDENT_VOCABULARY if token in TEACHER_VOCABULARY]
    student_K, teacher_K = (
        torch.tensor([tokens.index(token) for token in both]) for tokens in (STUDENT_VOCABULARY, TEACHER_VOCABULARY)
    )
    return Shared.of(student_K, teacher_K, len(STUDENT_VOCABULARY), len(TEACHER_VOCABULARY))


def follow(side: str, logits: Tensor, ids: Tensor) -> Tensor:
    """How likely what stands behind each span's first token is."""
    logp = logits.log_softmax(1).gather(1, ids[:, None])[:, 0]
    return torch.stack([logp[start + 1 : end].sum() for start, end in SPANS[side]])


def assert_same(said: dict[str, Tensor], name: str, compared: Compared, student: Tensor, follow_C: Tensor) -> None:
    """Means over spans. The slope by what follows goes on through its tokens' log-probabilities."""
    spans = len(compared.value_C)
    torch.testing.assert_close(compared.value_C.mean(), said[f"{name}/loss"])
    (gradient,) = torch.autograd.grad((follow_C[:spans] * compared.slope_follow_C).sum() / spans, student)
    for span, (start, _) in enumerate(SPANS["student"][:spans]):
        gradient[start] += compared.slope_CV[span] / spans
    torch.testing.assert_close(gradient, said[f"{name}/gradient"])


@pytest.mark.parametrize(("name", "spans"), [("uld", SINGLE), ("gold", SINGLE), ("merged", len(SPANS["student"]))])
def test_losses_and_gradients_are_those_of_gold(said: dict[str, Tensor], name: str, spans: int) -> None:
    tensors = given()
    student, teacher = tensors["student"].requires_grad_(), tensors["teacher"]
    ours_C = follow("student", student, tensors["student_ids"])
    theirs_C = follow("teacher", teacher, tensors["teacher_ids"])
    student_CV = student.detach()[[start for start, _ in SPANS["student"][:spans]]]
    teacher_CW = teacher[[start for start, _ in SPANS["teacher"][:spans]]]
    if name == "uld":
        compared = uld(teacher_CW, student_CV)
    else:
        compared = merged(
            teacher_CW, student_CV, theirs_C[:spans], ours_C.detach()[:spans], shared(),
            beta=BETA, shared_weight=MATCHED, rest_weight=UNMATCHED,
        )  # fmt: skip
    assert_same(said, name, compared, student, ours_C)
