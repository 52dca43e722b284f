"""The sections of the pages: a file each with TITLE ("" for none in the head), PATH and `routes(site)`; a line here.

One that not every run has says so in `shown(run)`: then the head leaves it out.
"""

from types import ModuleType

from potstill.view.sections import arena, compare, findings, rows, run, scores, stages

SECTIONS: tuple[ModuleType, ...] = (run, stages, rows, scores, compare, findings, arena)
"""In the order in which the head of a page lists them."""
