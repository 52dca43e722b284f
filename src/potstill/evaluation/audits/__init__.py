"""Audits of models for what distillation is known to do wrong: a file a danger, pure functions of what was measured."""
