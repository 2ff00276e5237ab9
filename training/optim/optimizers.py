"""Every optimizer that transformers or DeepSpeed names.

transformers lists each one that it could drive, and most need a package of their own. States are counted for fp32
trained values.
"""

from __future__ import annotations

from training.optim.facts import ForeachAdam, Optimizer, Package

BITSANDBYTES = Package("bitsandbytes", "bitsandbytes")
_TORCHAO = Package("torchao", "torchao")
_GALORE = Package("galore_torch", "galore-torch")
_APOLLO = Package("apollo_torch", "apollo-torch")
_GROKADAMW = Package("grokadamw", "grokadamw")
_SCHEDULE_FREE = Package("schedulefree", "schedulefree")
_SCHEDULE_FREE_1_4 = Package("schedulefree", "schedulefree>=1.4")
_OPTIMI = Package("optimi", "torch-optimi")
_MUP = Package("mup", "mup")

_BLOCKS = ("block_size", "bf16_stochastic_round")
_LOW_RANK = ("rank", "update_proj_gap", "scale", "proj_type")
_FREE = ("weight_lr_power", "r")
_ADEMAMIX = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
_GROK = ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping")

_IN_BACKWARD = "steps inside the backward pass: its state is in no checkpoint and the gradient norm is not clipped"
_CLOSURES = "asks for closures or sparse gradients, which there are none of: name another one"
_NO_TORCHDISTX = "torchdistx, which has it, is no longer released: use adamw_torch_fused"


def _of_bitsandbytes(name: str, states: int, arguments: tuple[str, ...] = ()) -> Optimizer:
    return Optimizer(name, states, in_8bit="8bit" in name, packages=(BITSANDBYTES,), arguments=arguments)


_IN_RECIPES = (
    Optimizer("adamw_torch_fused", 2, same_training="adamw", advised_on=("cpu", "cuda")),
    ForeachAdam("adamw_torch", 2, same_training="adamw", advised_on=("cpu", "cuda")),
    Optimizer("adafactor", 0, flat_states=1, in_json="torch", advised_on=("cpu", "cuda")),
    Optimizer("adamw_8bit", 2, in_8bit=True, packages=(BITSANDBYTES,), advised_on=("cuda",)),
    _of_bitsandbytes("adamw_bnb_8bit", 2),
    _of_bitsandbytes("paged_adamw_8bit", 2),
    _of_bitsandbytes("paged_adamw_32bit", 2),
    _of_bitsandbytes("lion_32bit", 1),
    _of_bitsandbytes("lion_8bit", 1),
    _of_bitsandbytes("paged_lion_32bit", 1),
    _of_bitsandbytes("paged_lion_8bit", 1),
    _of_bitsandbytes("ademamix", 3, _ADEMAMIX),
    _of_bitsandbytes("ademamix_8bit", 3, _ADEMAMIX),
    _of_bitsandbytes("paged_ademamix_32bit", 3, _ADEMAMIX),
    _of_bitsandbytes("paged_ademamix_8bit", 3, _ADEMAMIX),
    _of_bitsandbytes("rmsprop_bnb", 1),
    _of_bitsandbytes("rmsprop_bnb_32bit", 1),
    _of_bitsandbytes("rmsprop_bnb_8bit", 1),
    Optimizer("sgd", 0, adds_state=("momentum",), arguments=("momentum", "dampening", "nesterov"), in_json="torch"),
    Optimizer("adagrad", 1, arguments=("lr_decay", "eps"), in_json="deepspeed"),
    Optimizer(
        "rmsprop",
        1,
        adds_state=("momentum", "centered"),
        arguments=("momentum", "alpha", "eps", "centered"),
        in_json="torch",
    ),
    Optimizer("adamw_torch_4bit", packages=(_TORCHAO,), arguments=_BLOCKS),
    Optimizer("adamw_torch_8bit", packages=(_TORCHAO,), arguments=_BLOCKS),
    Optimizer("galore_adamw", packages=(_GALORE,), arguments=_LOW_RANK, projects=True),
    Optimizer("galore_adamw_8bit", packages=(_GALORE, BITSANDBYTES), arguments=_LOW_RANK, projects=True),
    Optimizer("galore_adafactor", packages=(_GALORE,), arguments=_LOW_RANK, projects=True),
    Optimizer("apollo_adamw", packages=(_APOLLO,), arguments=(*_LOW_RANK, "proj", "scale_type"), projects=True),
    Optimizer("grokadamw", packages=(_GROKADAMW,), arguments=_GROK),
    Optimizer("schedule_free_adamw", packages=(_SCHEDULE_FREE,), arguments=_FREE),
    Optimizer("schedule_free_radam", packages=(_SCHEDULE_FREE_1_4,), arguments=_FREE),
    Optimizer("schedule_free_sgd", packages=(_SCHEDULE_FREE,), arguments=_FREE),
    Optimizer("stable_adamw", packages=(_OPTIMI,), arguments=("decouple_lr", "max_lr", "kahan_sum")),
    Optimizer("adalomo", refusal=_IN_BACKWARD),
    Optimizer("lomo", refusal=_IN_BACKWARD),
    Optimizer("adamw_anyprecision", 2, refusal=_NO_TORCHDISTX),
    Optimizer("adamw_torch_npu_fused", refusal="is for Ascend NPUs: use adamw_torch_fused"),
    Optimizer("adamw_torch_xla", refusal="is for TPUs: use adamw_torch_fused"),
    Optimizer("apollo_adamw_layerwise", refusal=_IN_BACKWARD, projects=True),
    Optimizer("galore_adafactor_layerwise", refusal=_IN_BACKWARD, projects=True),
    Optimizer("galore_adamw_8bit_layerwise", refusal=_IN_BACKWARD, projects=True),
    Optimizer("galore_adamw_layerwise", refusal=_IN_BACKWARD, projects=True),
)
_IN_JSON_ONLY = (
    Optimizer("adam", 2, in_recipe=False, in_json="deepspeed"),
    Optimizer("adamw", 2, in_recipe=False, in_json="deepspeed"),
    Optimizer("lamb", 2, in_recipe=False, in_json="deepspeed"),
    Optimizer("lion", 1, in_recipe=False, in_json="deepspeed"),
    Optimizer("muon", in_recipe=False, in_json="deepspeed", own_rates=("muon_lr", "adam_lr")),
    Optimizer("muadam", packages=(_MUP,), in_recipe=False, in_json="deepspeed"),
    Optimizer("muadamw", packages=(_MUP,), in_recipe=False, in_json="deepspeed"),
    Optimizer("musgd", packages=(_MUP,), in_recipe=False, in_json="deepspeed"),
    Optimizer("radam", 2, in_recipe=False, in_json="torch"),
    Optimizer("nadam", 2, in_recipe=False, in_json="torch"),
    Optimizer("adamax", 2, in_recipe=False, in_json="torch"),
    Optimizer("lbfgs", in_recipe=False, in_json="torch", refusal=_CLOSURES),
    Optimizer("sparseadam", in_recipe=False, in_json="torch", refusal=_CLOSURES),
)
OPTIMIZERS: tuple[Optimizer, ...] = (*_IN_RECIPES, *_IN_JSON_ONLY)
