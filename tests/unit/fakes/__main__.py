"""The command line with these stages: `python -m fakes run RECIPE`."""

import sys

from fakes import MODULES
from potstill import stages
from potstill.cli import main

stages.MODULES.update(MODULES)
sys.exit(main())
