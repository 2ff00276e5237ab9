"""MiniGPT for Hugging Face's auto classes: importing this package registers it, `save_pretrained` carries its code.

A saved MiniGPT directory holds the files of this package and an `auto_map`, so it loads in a process without
this repo by `AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)`; with this package imported the
registered classes are used and no flag is needed. The files import each other only relatively, for that reason.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_minigpt import MiniGPTConfig
from .modeling_minigpt import MiniGPTForCausalLM, MiniGPTModel

AutoConfig.register("minigpt", MiniGPTConfig, exist_ok=True)
AutoModel.register(MiniGPTConfig, MiniGPTModel, exist_ok=True)
AutoModelForCausalLM.register(MiniGPTConfig, MiniGPTForCausalLM, exist_ok=True)
MiniGPTConfig.register_for_auto_class()
MiniGPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["MiniGPTConfig", "MiniGPTForCausalLM", "MiniGPTModel"]
