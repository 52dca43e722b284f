"""The estimate of a whole plan: each stage that would run and computes on the hardware."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from potstill.errors import PotstillError
from potstill.estimates.answering import answers, capture, count_parameters
from potstill.estimates.base import Estimate, Estimates
from potstill.estimates.before import took_before
from potstill.estimates.measured import Pace, pace_of
from potstill.estimates.models import Known, downloads, known_models, links_of, tokenizer_of
from potstill.estimates.rows import sample
from potstill.estimates.training import Lot, Trainer
from potstill.estimates.trying import tried
from potstill.hardware import Hardware
from potstill.runs.plan import Plan, Step
from potstill.sources import EndpointModel
from potstill.stages.capture import CaptureConfig
from potstill.stages.pretrain import PretrainConfig
from potstill.stages.training import TrainingConfig

ASKED = ("model", "models", "teacher", "user", "judge")
"""What fields are called whose models a stage asks."""
LIGHT = ("init", "quantize", "import", "export", "report")
"""Stages that take no time to speak of."""


def estimate(plan: Plan, hardware: Hardware, workspace: Path) -> Estimates:
    """Of all stages that are not sealed. What cannot be told of one is said there, and the others are told."""
    hardware, pace = pace_of(hardware)
    found, known = [], dict[str, Known]()
    factors = dict[str, float]()
    for step in plan.to_run:
        if step.head["kind"] in LIGHT:
            continue
        try:
            one = _stage(plan, step, (hardware, pace), workspace, (known, factors))
        except (PotstillError, NotImplementedError) as error:
            one = Estimate(step.name, str(step.head["kind"]), unknown=str(error))
        if one is not None:
            found.append(one)
    parameters = {name: count_parameters(one) for name, one in known.items() if one.download}
    said = pace.said
    if factors:
        told = ", ".join(f"{name} {1 / factor:.0%}" for name, factor in factors.items())
        said += f"; steps of each stage were timed, and reached of that: {told}"
    return Estimates(hardware, tuple(found), said, downloads(known, parameters))


def _stage(
    plan: Plan,
    step: Step,
    how: tuple[Hardware, Pace],
    workspace: Path,
    notes: tuple[dict[str, Known], dict[str, float]],
) -> Estimate | None:
    """None where it computes nothing here."""
    known, factors = notes
    config = step.entry.config
    named = {
        one.name: one for link in links_of(step, *ASKED) for one in known_models(plan, step, link)
    }  # fmt: skip
    known |= named
    if isinstance(config, TrainingConfig):
        trainer = _trainer(plan, step, config, how)
        hardware, pace = how
        if hardware.device.here:
            variant = trainer.variant(config, 1, hardware)
            assert variant is not None, "it was asked for anyway"
            if trial := tried(trainer, variant):
                factors[step.name] = trial.factor
                trainer.pace = replace(pace, factor=trial.factor, kept=trial.kept, own_bytes=trial.own_bytes)
        found = trainer.estimate(step.name, step.entry.family, hardware)
        if hardware.device.here and (seconds := took_before(step, trainer, workspace)) is not None:
            told = f"{step.name}'s time is as measured here before, by its rows of now"
            usd = found.usd and found.usd * seconds / found.seconds
            found = replace(found, seconds=seconds, usd=usd, assumed=(*found.assumed, told))
        return found
    if isinstance(config, CaptureConfig):
        (link,) = links_of(step, "teacher")
        if any(isinstance(model.spec, EndpointModel) for model in link.models):
            return None
        (teacher,) = known_models(plan, step, link)
        (reader,) = [one for at in links_of(step, "student") for one in known_models(plan, step, at)] or [teacher]
        rows = sample(plan, step, tokenizer_of(reader), teacher.config.get_text_config().vocab_size)
        return capture(step, config, teacher, rows, how)
    return answers(step, named, how, workspace) if named else None


def _trainer(plan: Plan, step: Step, config: TrainingConfig, how: tuple[Hardware, Pace]) -> Trainer:
    """Its model, its teachers at hand and its rows."""
    if isinstance(config, PretrainConfig):
        from potstill.training.making import make_config

        model = Known(step.name, make_config("mistral", config, config.vocabulary), "the recipe")
    else:
        (model,) = [one for link in links_of(step, "model") for one in known_models(plan, step, link)]
    teachers = [one for link in links_of(step, "teacher") for one in known_models(plan, step, link)]
    rows = sample(plan, step, tokenizer_of(model), model.config.get_text_config().vocab_size)
    return Trainer(config, model, teachers, Lot(rows, max(1, step.expected.rows), config.held_out), how[1])


def by_stage(estimates: Estimates) -> Mapping[str, Estimate]:
    """By the stages' names."""
    return {one.stage: one for one in estimates.stages}
