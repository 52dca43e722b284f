"""Scores of anyone's making, found anew and set against each other. No model, no network."""
