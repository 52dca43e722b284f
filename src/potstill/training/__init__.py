"""Packing, attention over shared prompts, the scorer, the loop: everything that holds a model."""

import logging

# peft imports it where it is installed, and it warns of what is not wrong: kernels of the Hub that nobody asked for,
# and products in float16, which 8 bits take.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
