"""potstill turns any teacher into a small aligned language model that its user owns."""

__version__ = "0.1.0"
