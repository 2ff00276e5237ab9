"""`python -m training.benchmark advise`: one lever at a time, tried on the user's own configuration."""
