"""Finds the files of sources and reads their records, each with its place of origin."""
