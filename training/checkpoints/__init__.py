"""Checkpoints that are known to be whole: manifests, finding one to resume from, checking `final/`."""
