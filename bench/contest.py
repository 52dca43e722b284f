"""One question from arguments to the printed row: the sets of rows, the sides, the rounds, the record."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cost import teacher_flops
from measure import OURS, Results, Round, alternate, commit, disagreement, hardware, summary
from rows import ARCHITECTURES, Architecture, read, save_model, write
from sides import ROOT, Side, need_peers

QUICK_SECONDS = 440.0
"""Of the eight minutes that --quick may take; the rest is for starting and ending."""
Options = dict[str, Any]


@dataclass(frozen=True)
class RowSet:
    """Rows of one kind, in rounds that every side trains on."""

    name: str
    make: Callable[[int, int, int], list[dict]]
    """(seed, count, vocabulary) → rows."""
    rows_per_round: int
    global_batch: int
    max_length: int
    quick_rounds: int
    full_rounds: int
    told: str
    """What the rows are, for the record."""


@dataclass(frozen=True)
class Question:
    """What is asked, of whom, on which rows."""

    name: str
    kind: str
    unit: str
    amount: Callable[[dict], int]
    """What a row counts, in that unit."""
    flops: Callable[[Architecture, dict], float]
    """The least a row costs."""
    learning_rate: float
    sets: Sequence[RowSet]
    """The last is the one whose figures stand at the top of the row."""
    peers: Mapping[str, Options]
    """TRL's variants by name, each the options that differ from its defaults. The first is timed in every round."""
    candidates: Sequence[Options]
    """Settings of which `trl_best` takes the fastest."""
    gpu_candidates: Sequence[Options]
    quick_probe: int = 0
    """Rows that each candidate is timed on with --quick on a CPU. None: the first stands, untimed."""
    beta: float = 0.1
    """DPO's, or the generalized JSD's."""
    model: str = "60m"
    """The size of what is trained, unless --model names another."""
    teacher: str = ""
    """The size of the model that teaches, where one does."""
    few_steps: bool = False
    """A round is so short that what the one before it left in a process would count for much of the peak memory: it is
    given back to the system first."""


def arguments(question: Question, *, sweep: bool = False) -> argparse.Namespace:
    """The command line that all questions share."""
    parser = argparse.ArgumentParser(description=f"{question.name}: ours against TRL, one row of JSON at the end")
    parser.add_argument("--quick", action="store_true", help="fewer rows; ends within eight minutes")
    if sweep:
        parser.add_argument("--sweep", action="store_true", help="three epochs for each of three betas instead")
    parser.add_argument("--profile", action="store_true", help="also say where our time goes")
    parser.add_argument("--record", action="store_true", help="append the row to bench/results")
    parser.add_argument("--peers", nargs="*", choices=question.peers, help="these alone; none: ours alone")
    parser.add_argument("--rounds", type=int, help="rounds of each set, instead of its own number")
    parser.add_argument("--model", choices=ARCHITECTURES, default=question.model, help="the model's size")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    chosen = parser.parse_args()
    chosen.tiny = os.environ.get("BENCH_TINY") == "1"
    chosen.model = "tiny" if chosen.tiny else chosen.model
    chosen.device = os.environ.get("BENCH_DEVICE", chosen.device)
    if chosen.device == "auto":
        import torch

        chosen.device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen.peers = list(question.peers) if chosen.peers is None else chosen.peers
    if chosen.peers:
        need_peers()
    return chosen


class Contest:
    """The sides, their model and their folder, for as long as one question is asked."""

    def __init__(self, question: Question, chosen: argparse.Namespace, stack: ExitStack) -> None:
        self.question, self.chosen = _fitting(question, chosen), chosen
        self.begun = time.monotonic()
        self.asked = 0
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.size = save_model(self.folder / "model", chosen.model)
        self.teacher = self._save_teacher()
        names = [OURS, *chosen.peers]
        self.sides: dict[str, Side] = {}
        for name in names:
            self.sides[name] = Side(name, self.folder)
            stack.callback(self.sides[name].close)
        self.options: dict[str, Options] = {OURS: {}, **{name: dict(o) for name, o in question.peers.items()}}
        self.versions = {name: side.ask({"do": "versions"}) for name, side in self.sides.items()}
        self.peak = self._matrix_peak()

    def _save_teacher(self) -> Architecture | None:
        """Its distributions are far enough from the student's that what rounds them otherwise is no other work."""
        name = self.question.teacher
        return save_model(self.folder / "teacher", name, seed=1, sharpness=5.0) if name else None

    def job(self, side: str, row_set: RowSet, rows: Path, **changes: Any) -> dict[str, Any]:
        """What a side is asked. What it caches goes to a workspace of this job alone, unless `changes` name another."""
        self.asked += 1
        return {
            "do": "train",
            "name": f"job-{self.asked}",
            "kind": self.question.kind,
            "model": str(self.folder / "model"),
            "teacher": str(self.folder / "teacher"),
            "rows": str(rows),
            "trim": self.question.few_steps,
            "out": str(self.folder / f"out-{side}"),
            "workspace": str(self.folder / f"workspace-{self.asked}"),
            "device": self.chosen.device,
            "vocabulary": self.size.vocabulary,
            "options": self.options[side],
            "epochs": 1,
            "beta": self.question.beta,
            "learning_rate": self.question.learning_rate,
            "global_batch": row_set.global_batch,
            "max_length": row_set.max_length,
            **changes,
        }

    def _matrix_peak(self) -> dict[str, Any]:
        return self.sides[OURS].ask({"do": "peak", "device": self.chosen.device, "tiny": self.chosen.tiny})

    def measure_peak_again(self) -> None:
        """A machine that was busy at first would make the peak too low; the higher of both stands."""
        again = self._matrix_peak()["flops_per_second"]
        first = self.peak["flops_per_second"]
        self.peak["flops_per_second"] = {name: max(first[name], again[name]) for name in first}

    def rounds(self, row_set: RowSet, count: int, seed: int = 1) -> list[Round]:
        """Written to files. One draw of lengths for all of them together, so that their means are as declared."""
        size = row_set.rows_per_round
        rows = row_set.make(seed, count * size, self.size.vocabulary)
        made = []
        for number in range(count):
            part = rows[number * size : (number + 1) * size]
            path = self.folder / f"{row_set.name}-{seed}-{number}.jsonl"
            write(path, part)
            made.append(Round(path, sum(map(self.question.amount, part))))
        return made

    def warm_up(self) -> None:
        """What nobody times: each side does once what a process does only once. A GPU compiles for each shape too."""
        for row_set in self.question.sets if self.chosen.device == "cuda" else self.question.sets[:1]:
            (round_,) = self.rounds(row_set, 1, seed=2)
            for name, side in self.sides.items():
                side.ask(self.job(name, row_set, round_.rows))

    def find_best(self) -> dict[str, float]:
        """Seconds of each candidate on the same rows; the fastest becomes what `trl_best` is, where it takes part."""
        if "trl_best" not in self.sides:
            return {}
        row_set, timed = self.question.sets[-1], {}
        on_gpu = self.chosen.device == "cuda"
        candidates = self.question.gpu_candidates if on_gpu else self.question.candidates
        hurried = self.chosen.quick and not on_gpu
        size = min(self.question.quick_probe, row_set.rows_per_round) if hurried else row_set.rows_per_round
        probe = replace(row_set, rows_per_round=size)
        for options in candidates if size else ():
            (round_,) = self.rounds(probe, 1, seed=3)
            self.options["trl_best"] = {**self.question.peers["trl_best"], **options}
            answer = self.sides["trl_best"].ask(self.job("trl_best", probe, round_.rows))
            timed[json.dumps(options)] = answer["seconds"]
            say(f"trl_best with {options}: {answer['seconds']:.1f} s")
        best = json.loads(min(timed, key=lambda options: timed[options])) if timed else candidates[0]
        self.options["trl_best"] = {**self.question.peers["trl_best"], **best}
        return timed

    def run_set(self, row_set: RowSet, count: int, deadline: float | None) -> Results:
        """All rounds of one set. Refuses to report sides that did not train on the same thing."""
        rounds = self.rounds(row_set, count)
        sides = {
            name: lambda round_, name=name, side=side: side.ask(self.job(name, row_set, round_.rows))
            for name, side in self.sides.items()
        }
        leads = list(self.sides)[:2]
        results = alternate(sides, rounds, leads, deadline, lambda text: say(f"{row_set.name}, {text}"))
        same_work({name: results.first(name) for name in self.sides})
        return results

    def utilisation(self, results: Results) -> dict[str, Any]:
        """The share of the measured peak that our side's necessary FLOPs are."""
        flops = sum(self._flops(row) for round_ in results.rounds for row in read(round_.rows))
        seconds = sum(answer["seconds"] for answer in results.by_side[OURS] if answer)
        per_second = flops / seconds
        precision = results.first(OURS)["facts"].get("dtype", "bfloat16")
        peak = self.peak["flops_per_second"]
        return {"flops_per_second": per_second, "precision": precision, "share_of_peak": per_second / peak[precision]}

    def _flops(self, row: dict) -> float:
        taught = teacher_flops(self.teacher, row) if self.teacher else 0.0
        return self.question.flops(self.size, row) + taught

    def header(self) -> dict[str, Any]:
        """Question, commit, hardware, versions and config."""
        question, chosen = self.question, self.chosen
        versions = {OURS: self.versions[OURS]["versions"]}
        for name in chosen.peers:
            versions["trl"] = self.versions[name]["versions"]  # of one environment, all of them
        config = {
            "model": chosen.model,
            "weights": self.size.weights,
            **({"teacher": question.teacher, "teacher_weights": self.teacher.weights} if self.teacher else {}),
            "device": chosen.device,
            "quick": chosen.quick,
            "learning_rate": question.learning_rate,
            "peers": {name: self.options[name] for name in chosen.peers},
        }
        return {
            "question": question.name,
            "unit": f"{question.unit}_per_second",
            **commit(),
            "hardware": {
                **hardware(),
                **_gpu(chosen.device),
                "threads": {name: answer["threads"] for name, answer in self.versions.items()},
                "idle_bytes": {name: answer["peak_bytes"] for name, answer in self.versions.items()},
                "matrix_peak": {key: self.peak[key] for key in ("flops_per_second", "shape")},
            },
            "versions": versions,
            "config": config,
        }


def same_work(answers: Mapping[str, Mapping[str, Any]]) -> None:
    """End the benchmark where the sides did different things."""
    if wrong := disagreement(answers):
        raise SystemExit(f"the sides did not train on the same thing: {wrong}")


def run(question: Question, chosen: argparse.Namespace) -> dict[str, Any]:
    """All sets, and the row of it."""
    with ExitStack() as stack:
        contest = Contest(question, chosen, stack)
        deadline = contest.begun + QUICK_SECONDS if chosen.quick else None
        contest.warm_up()
        probed = contest.find_best()
        raced: list[tuple[RowSet, int, Results]] = []
        for row_set in contest.question.sets:
            count = chosen.rounds or (row_set.quick_rounds if chosen.quick else row_set.full_rounds)
            raced.append((row_set, count, contest.run_set(row_set, count, deadline)))
        contest.measure_peak_again()
        sets: dict[str, Any] = {}
        for row_set, count, results in raced:
            use = contest.utilisation(results)
            sets[row_set.name] = {"rows": row_set.told, "planned_rounds": count, **summary(results), "utilisation": use}
        row = contest.header()
        name, head = next(reversed(sets.items()))
        row["config"] |= {"set": name, "best_of_seconds": probed}
        figures = ("ours", "peers", "ratios", "spread", "peak_bytes", "peak_ratios", "utilisation")
        row |= {figure: head[figure] for figure in figures}
        if chosen.profile:
            row["profile"] = profile(contest)
        return {**row, "sets": sets, "seconds": round(elapsed(contest), 1)}


def profile(contest: Contest) -> dict[str, Any]:
    """One more round of ours, not timed, under torch's profiler."""
    row_set = contest.question.sets[-1]
    (round_,) = contest.rounds(row_set, 1)
    answer = contest.sides[OURS].ask(contest.job(OURS, row_set, round_.rows, profile=True))
    found: dict[str, Any] = answer["profile"]
    for name, share in [*found["groups"].items(), ("", 0.0), *found["operators"].items()]:
        say(f"{share:7.1%}  {name}" if name else "")
    return found


GPU_ROWS = 16
"""A GPU gets so many times the rows: a round of a CPU's would be over before it is timed well."""


def _fitting(question: Question, chosen: argparse.Namespace) -> Question:
    """The question with as many rows as suit the device, or so few that a test can ask it."""
    if chosen.tiny:
        sets = [replace(s, rows_per_round=2, global_batch=2, quick_rounds=2, full_rounds=2) for s in question.sets]
        question = replace(question, teacher=question.teacher and "tiny")
    elif chosen.device == "cuda":
        sets = [replace(s, rows_per_round=GPU_ROWS * s.rows_per_round) for s in question.sets]
    else:
        sets = list(question.sets)
    return replace(question, sets=sets)


def elapsed(contest: Contest) -> float:
    """Seconds since the question was asked."""
    return time.monotonic() - contest.begun


def finish(row: Mapping[str, Any], chosen: argparse.Namespace) -> None:
    """Keep the row where that is asked for, and print it as the last line."""
    line = json.dumps(row)
    if chosen.record:
        path = ROOT / "bench" / "results" / f"{row['question']}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        say(f"appended to {path.relative_to(ROOT)}")
    say(", ".join([f"{row['ours']:.4g} a second", *(f"{r:.3g} times {name}" for name, r in row["ratios"].items())]))
    if "utilisation" in row:
        say(f"{row['utilisation']['share_of_peak']:.1%} of the measured peak")
    sys.stdout.write(line + "\n")


def say(text: str) -> None:
    """For whoever watches."""
    sys.stderr.write(text + "\n")


def _gpu(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {}
    import torch

    return {"gpu": torch.cuda.get_device_name(), "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory}
