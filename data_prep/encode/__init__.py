"""Encodes text to token ids: trains or finds the tokenizer, chooses the encoder and the chat template."""
