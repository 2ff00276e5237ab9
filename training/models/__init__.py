"""Models: what a recipe's `model` and `adapter` sections become. `build.build_model` is the way in.

Importing the package registers MiniGPT with the auto classes, so whatever loads a model from here knows it.
"""

from . import minigpt as minigpt
