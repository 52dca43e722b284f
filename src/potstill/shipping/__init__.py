"""Models on their way out: folders for the Hub, files for llama.cpp, adapters, their cards, and how they are pushed."""
