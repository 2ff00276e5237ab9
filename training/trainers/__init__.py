"""Subclasses of the Hugging Face Trainer: a few seams, never a copied loop."""
