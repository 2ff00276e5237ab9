"""The recipe and the launches of tests/integration."""

from tests.integration.conftest import launch, launch_all, recipe

__all__ = ["launch", "launch_all", "recipe"]
