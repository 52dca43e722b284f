"""Configs of other tools as recipes: every key is carried, is how potstill works anyway, or is named with a reason."""
