"""A run: its plan, its folder, its stages one after another, and what it says while it goes on."""
