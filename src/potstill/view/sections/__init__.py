"""The sections of the pages: a file each with TITLE ("" for none in the head), PATH and `routes(site)`; a line here."""

from types import ModuleType

from potstill.view.sections import compare, findings, rows, run, scores, stages

SECTIONS: tuple[ModuleType, ...] = (run, stages, rows, scores, compare, findings)
"""In the order in which the head of a page lists them."""
