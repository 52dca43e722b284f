"""The table of stages: a new one is a file and a line here. Imported when first asked for, so that --help is quick."""

from functools import cache
from importlib import import_module

from potstill.stages.base import Stage

MODULES = {
    "miniature": "potstill.stages.miniature_data",
    "import": "potstill.stages.import_data",
    "self_instruct": "potstill.stages.self_instruct",
    "topics": "potstill.stages.topics",
    "creation": "potstill.stages.creation",
    "material": "potstill.stages.material",
    "magpie": "potstill.stages.magpie",
    "evolve": "potstill.stages.evolve",
    "converse": "potstill.stages.converse",
    "label": "potstill.stages.label",
    "reason": "potstill.stages.reason",
    "use_tools": "potstill.stages.use_tools",
    "teach_judge": "potstill.stages.teach_judge",
    "curate": "potstill.stages.curate",
    "pretrain": "potstill.stages.pretrain",
    "init": "potstill.stages.init",
    "sft": "potstill.stages.sft",
    "capture": "potstill.stages.capture",
    "distill": "potstill.stages.distill",
    "sample": "potstill.stages.sample",
    "judge": "potstill.stages.judge",
    "binarize": "potstill.stages.binarize",
    "try_judge": "potstill.stages.try_judge",
    "dpo": "potstill.stages.dpo",
    "quantize": "potstill.stages.quantize",
    "evaluate": "potstill.stages.evaluate",
    "audit": "potstill.stages.audit",
    "export": "potstill.stages.export",
    "report": "potstill.stages.report",
}


@cache
def stage(kind: str) -> Stage:
    """The stage of that kind; KeyError where there is none."""
    found = import_module(MODULES[kind]).STAGE
    assert isinstance(found, Stage)
    return found
