"""Builds token stores in parts, and reads their documents through memory maps."""
