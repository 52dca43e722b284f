"""A teacher's signal on its way to disk and back: taken from logits, packed into bits, kept in shards."""
