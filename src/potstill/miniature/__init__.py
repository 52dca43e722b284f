"""The embedded closed world: an encyclopedia, prompts about it, teachers with known flaws, a judge that checks.

Data flows `world → tasks → voices, findings → mind → server`. The server knows nothing of the rest of potstill: it
reads the text of a request as any model would, and answers in text.
"""

MEANING = 1
"""Raised when a world seed comes to mean other facts, prompts or replies; part of every key that depends on them."""
