"""Training scripts of the other sides, as their documentation has them; each is run as `python -m`."""
