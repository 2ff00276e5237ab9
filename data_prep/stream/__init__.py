"""Streams documents from the sources, without a store."""
