"""Text to token ids: tokenizers trained or found, templates chosen, encoders compared."""
