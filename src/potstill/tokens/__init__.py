"""Conversations as token ids: what is learnt of them, and how two tokenizers cut the same bytes."""
