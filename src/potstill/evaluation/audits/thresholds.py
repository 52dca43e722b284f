"""Every threshold of the audits, in one place: how sure one must be, from how much on, and how large is large."""

import math

MISTAKES = 0.05
"""The chance that an audit in which nothing is wrong flags anything at all (Holm 1979, over all its hypotheses)."""
LEAST_QUESTIONS = 10
"""With fewer questions an interval of Student's t says little, and nothing is told."""
LEAST_FREEDOM = 2
"""Degrees of Student's t from which an interval is told at all."""

# Overfitting.
RISE = 0.02
"""Of the lowest held-out loss: how much higher it may end."""
LEAST_EVALUATIONS = 5
"""Points of a curve from which its own scatter can be known."""
PAST_OPTIMUM = 0.02
"""Of a scale's width, or of the score where the scale has no end: how far the last epoch may fall behind another."""

# Diversity, against the teacher or the stage before.
ALIKE = 0.10
"""The n-gram cosine of two answers: how much closer a student's may lie."""
DISTINCT = 0.05
"""Of the runs of two words: by how much the share of different ones may fall, over the same number of words."""

# Inherited errors.
INHERITED = 0.10
"""How much likelier the same mistake may be where the teacher made it than any mistake where it made none."""
LEAST_WRONG = 5
"""Mistakes of the teacher in a category from which it is looked at."""

# Inherited bias, in either direction.
BIAS_SCORE = 0.05
"""Of the scale's width."""
BIAS_LENGTH = math.log(1.10)
"""Of answers' words, as a logarithm of their ratio: a tenth longer."""
BIAS_REFUSALS = 0.05
"""Of the answers."""

# Drift, against the teacher and against the stage before.
DRIFT_LENGTH = math.log(1.25)
"""As a logarithm of the ratio: a quarter longer, or a fifth shorter."""
DRIFT_HEDGES = 0.05
"""Of the answers: how many more may hedge."""
DRIFT_REFUSALS = 0.05
"""Of the answers: how many more may decline."""

# Forgetting, against the base.
FORGOTTEN_LOSS = 0.05
"""Nats per token, about five per cent of the perplexity."""
FORGOTTEN_SCORE = 0.02
"""Of the scale's width."""

# Calibration.
OVERCONFIDENT = 0.05
"""How much further than the teacher's, or than the stage before's, confidence may lie above accuracy."""
BINS = 10
"""Of a reliability curve, of equal width (Guo et al. 2017)."""

# Contamination.
LEAKED = 0.01
"""Of a suite's questions."""
RUN_WORDS = 8
"""A run of so many words is looked for; 13 in GPT-3's appendix C, which has longer questions."""
LEAST_RUNS = 2
"""So many runs long is a question that is looked for in parts; a shorter one is of a template's kind."""
COVERED = 2 / 3
"""Of a question's words: how many one training row must hold, in runs, to count as holding the question."""
ORDINARY_ROWS = 10
"""A run of words in more rows than this is a phrase of the data's, and no sign of a leak (GPT-3, appendix C)."""
