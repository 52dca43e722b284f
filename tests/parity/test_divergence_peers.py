"""Parity of divergences with TRL 1.16.0 and Liger-Kernel 0.8.5, from one student's and one teacher's heads.

All three mean the same by beta, `jsd`'s mix: the teacher's share of the mixture and the weight of its own KL. At 0 and
1, where that formula is 0, both peers compute forward and reverse KL instead, which here have names of their own. What
both leave out is the temperature's square: their gradients shrink with it (Hinton et al. 2015, section 2), so theirs
are multiplied by it to be compared. TRL's `GKDConfig.temperature` never reaches its loss: it is for sampling alone; its
newer `DistillationTrainer` has one temperature for both.
"""

import itertools
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.objectives.divergence import Divergence, compare
from potstill.objectives.signal import Dense

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"
LIGER = any(ROOT.glob(".venv-peers/lib/python*/site-packages/liger_kernel"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.exists(), reason="no .venv-peers: run `make peers`"),
]
needs_liger = pytest.mark.skipif(not LIGER, reason="no liger-kernel in .venv-peers: run `make peers`")

POSITIONS, VOCABULARY, WIDE, HIDDEN, TEACHER_HIDDEN = 12, 61, 64, 8, 10
IGNORED = -100


@dataclass(frozen=True)
class Case:
    """A divergence as a peer is asked for it."""

    peer: str
    beta: float
    temperature: float
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.peer}-{self.beta}-{self.temperature}-{self.dtype}"

    @property
    def ours(self) -> Divergence:
        if self.beta in (0.0, 1.0):
            return Divergence("reverse_kl" if self.beta else "forward_kl", temperature=self.temperature)
        return Divergence("jsd", mix=self.beta, temperature=self.temperature)

    @property
    def tolerance(self) -> float:
        """Liger and the chunked divergence add up in float32 whatever they are given."""
        return 1e-12 if self.dtype == "float64" and self.peer.startswith("gkd") else 1e-5


BETAS, TEMPERATURES = (0.0, 0.1, 0.5, 0.9, 1.0), (1.0, 2.5)
GKD = [Case("gkd_sum", *each) for each in itertools.product(BETAS, TEMPERATURES, ("float32", "float64"))]
CHUNKED = [Case("chunked", *each, "float32") for each in itertools.product(BETAS, TEMPERATURES)]
FUSED = [Case("liger", *each, "float32") for each in itertools.product(BETAS, TEMPERATURES)]
BATCHMEAN, UNLABELLED = (Case(peer, 0.3, 1.0, "float64") for peer in ("gkd_batchmean", "gkd_unlabelled"))
LIGER_WIDE = Case("liger_wide", 0.5, 1.0, "float32")


@cache
def given() -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    generator = torch.Generator().manual_seed(0)
    wide_weight = normal(WIDE, TEACHER_HIDDEN)
    labels = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    labels[torch.tensor([0, 5, 6, 11])] = IGNORED
    return {
        "student_hidden": normal(POSITIONS, HIDDEN),
        "student_weight": normal(VOCABULARY, HIDDEN),
        "teacher_hidden": normal(POSITIONS, TEACHER_HIDDEN),
        "teacher_weight": wide_weight[:VOCABULARY].clone(),
        "wide_weight": wide_weight,
        "labels": labels,
    }


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the peers made of the cases."""
    folder = tmp_path_factory.mktemp("divergence")
    cases = [*GKD, *CHUNKED, BATCHMEAN, UNLABELLED, *([*FUSED, LIGER_WIDE] if LIGER else [])]
    options = ("peer", "beta", "temperature", "dtype")
    (folder / "cases.json").write_text(json.dumps({c.name: {key: getattr(c, key) for key in options} for c in cases}))
    save_file(given(), folder / "given.safetensors")
    command = [str(PEER), str(Path(__file__).with_name("divergence_peer.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def ours(case: Case, teacher_head: str = "teacher_weight", pad: float | None = None) -> dict[str, Tensor]:
    """Values of each position, and the gradients of the sum over those with a label; the student's logits padded."""
    tensors = {key: z if key == "labels" else z.to(getattr(torch, case.dtype)) for key, z in given().items()}
    hidden, weight = tensors["student_hidden"], tensors["student_weight"]
    student = hidden @ weight.t()
    if pad is not None:
        student = torch.nn.functional.pad(student, (0, WIDE - VOCABULARY), value=pad)
    value, slope, _ = compare(case.ours, Dense(tensors["teacher_hidden"] @ tensors[teacher_head].t()), student)
    learnt = torch.ones(POSITIONS, dtype=torch.bool) if case.peer == "chunked" else tensors["labels"] != IGNORED
    slope = (slope * learnt[:, None])[:, :VOCABULARY]
    return {"loss": (value * learnt).sum().view(1), "hidden": slope @ weight, "weight": slope.t() @ hidden}


def agree(folder: Path, case: Case, by: float, expected: dict[str, Tensor]) -> bool:
    """Whether the peer's loss and gradients, times `by`, are ours."""
    theirs = load_file(folder / f"{case.name}.safetensors")
    assert theirs.keys() == expected.keys()
    return all((by * theirs[key] - z).norm() <= case.tolerance * z.norm() for key, z in expected.items())


def case_name(case: object) -> str | None:
    return case.name if isinstance(case, Case) else None


@pytest.mark.parametrize("case", [*GKD, *CHUNKED], ids=case_name)
def test_trl(peer: Path, case: Case) -> None:
    """Sums over positions with a label; the chunked divergence, which its caller masks, over all."""
    assert agree(peer, case, case.temperature**2, ours(case))
    if case.temperature != 1:
        assert not agree(peer, case, 1.0, ours(case)), "TRL has the temperature's square by now"


def test_what_trl_means_by_batchmean(peer: Path) -> None:
    """With labels, GKD's "batchmean" is the mean over positions with one, as a count would have it; without, the sum is
    divided by the number of rows, so that it grows with their length."""
    expected = ours(BATCHMEAN)
    assert agree(peer, BATCHMEAN, float((given()["labels"] != IGNORED).sum()), expected)
    theirs = load_file(peer / f"{UNLABELLED.name}.safetensors")["loss"]
    whole = compare(
        UNLABELLED.ours,
        Dense(given()["teacher_hidden"] @ given()["teacher_weight"].t()),
        given()["student_hidden"] @ given()["student_weight"].t(),
    )
    torch.testing.assert_close(2 * theirs[0], whole.value_C.sum(), rtol=1e-12, atol=0)


@needs_liger
@pytest.mark.parametrize("case", FUSED, ids=case_name)
def test_liger(peer: Path, case: Case) -> None:
    """Its fused linear JSD without its likelihood term: the mean over positions with a label. This part of Liger is
    plain torch, and runs without Triton."""
    learnt = int((given()["labels"] != IGNORED).sum())
    assert agree(peer, case, learnt * case.temperature**2, ours(case))
    if case.temperature != 1:
        assert not agree(peer, case, learnt, ours(case)), "Liger has the temperature's square by now"


@needs_liger
def test_liger_pads_a_smaller_student_with_zeros(peer: Path) -> None:
    """Trap: "Teacher and student vocabularies padded to different sizes: slice to the tokenizer or use minus infinity,
    never zeros". A logit of 0 is a token that the student may well say, and Liger learns to lower the others against
    it; ours, given those zeros, agrees with it, and sliced to the vocabulary it does not."""
    learnt = float((given()["labels"] != IGNORED).sum())
    assert agree(peer, LIGER_WIDE, learnt, ours(LIGER_WIDE, "wide_weight", pad=0.0))
    assert not agree(peer, LIGER_WIDE, learnt, ours(LIGER_WIDE))
