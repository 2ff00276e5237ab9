"""Records to conversations and texts, by the names of their keys. Knows nothing of files."""
