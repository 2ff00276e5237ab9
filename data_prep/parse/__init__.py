"""Parses records to conversations and texts, by the names of their keys; independent of files."""
