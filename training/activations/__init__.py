"""Activation checkpointing: its modes, and what the selective one keeps."""
