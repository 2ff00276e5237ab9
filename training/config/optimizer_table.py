"""What each value of `training.optim` needs and takes, beside the list of values that transformers has.

transformers lists every optimizer that it could drive; most need a package of their own.
"""

# Value of training.optim -> (module to import, what to install). Those of the project's own requirements, too: a GPU
# machine may come with a torch of its own and without them.
PACKAGES = {
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "apollo_adamw": ("apollo_torch", "apollo-torch"),
    "galore_adafactor": ("galore_torch", "galore-torch"),
    "galore_adamw": ("galore_torch", "galore-torch"),
    "galore_adamw_8bit": ("galore_torch", "galore-torch"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_adamw": ("schedulefree", "schedulefree"),
    "schedule_free_radam": ("schedulefree", "schedulefree>=1.4"),
    "schedule_free_sgd": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
}
_IN_BACKWARD = "steps inside the backward pass: its state is in no checkpoint and the gradient norm is not clipped"
# Values that are not offered, with the reason.
NOT_OFFERED = {
    "adalomo": _IN_BACKWARD,
    "adamw_anyprecision": "torchdistx, which has it, is no longer released: use adamw_torch_fused",
    "adamw_torch_npu_fused": "is for Ascend NPUs: use adamw_torch_fused",
    "adamw_torch_xla": "is for TPUs: use adamw_torch_fused",
    "apollo_adamw_layerwise": _IN_BACKWARD,
    "galore_adafactor_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adamw_layerwise": _IN_BACKWARD,
    "lomo": _IN_BACKWARD,
}
PROJECTED = ("galore_", "apollo_")  # of chosen linear layers: training.optim_target_modules

_LOW_RANK = ("rank", "update_proj_gap", "scale", "proj_type")
_SCHEDULE_FREE = ("weight_lr_power", "r")
_ADEMAMIX = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
_RMSPROP_BNB = ("alpha", "eps", "momentum", "centered")
# Start of a value of training.optim -> the keys of training.optim_args; an optimizer that is not here takes none.
# `weight_decay` is in none of them: it is training.weight_decay, which every parameter group states.
OPTIM_ARGS: dict[str, tuple[str, ...]] = {
    "adagrad": ("lr_decay", "eps"),
    "adamw_torch_4bit": ("block_size", "bf16_stochastic_round"),
    "adamw_torch_8bit": ("block_size", "bf16_stochastic_round"),
    "ademamix": _ADEMAMIX,
    "apollo_": (*_LOW_RANK, "proj", "scale_type"),
    "galore_": _LOW_RANK,
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    "paged_ademamix": _ADEMAMIX,
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    "rmsprop_bnb": (),
    "schedule_free_": _SCHEDULE_FREE,
    "sgd": ("momentum", "dampening", "nesterov"),
    "stable_adamw": ("decouple_lr", "max_lr", "kahan_sum"),
}


def describe_offer() -> str:
    """What a list of the values of `training.optim` has to add."""
    return (
        f"{', '.join(sorted(PACKAGES))}: need a package of their own, the error says which; "
        f"not offered: {', '.join(sorted(NOT_OFFERED))}"
    )


def takes_bitsandbytes(optim: str | None) -> bool:
    """Whether bitsandbytes has this optimizer; None: a DeepSpeed JSON names one in its place."""
    ours = ("bnb", "paged_", "lion_", "ademamix", "rmsprop_bnb")
    return optim is not None and (optim == "adamw_8bit" or any(name in optim for name in ours))
