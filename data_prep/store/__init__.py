"""The token store: its parts built, assembled and summed up, and its documents read by memory map."""
