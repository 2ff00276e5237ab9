"""Renders conversations with a chat template, and finds the characters that carry loss."""
