"""Conversations to text through a chat template, with the exact characters that carry loss."""
