"""Losses of a language model, without its logits."""
