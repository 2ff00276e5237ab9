"""Metric keys, in one place for producers, readers and tests.

The unit is part of the name (`_ms`, `_s`, `_gib`, `_pct`). `docs/metrics.md` gives the formula behind each key.
A value that was not measured is absent or null, never 0.
"""

TRAIN_LOSS = "train/loss"
TRAIN_GRAD_NORM = "train/grad_norm"
TRAIN_LEARNING_RATE = "train/learning_rate"
TRAIN_SKIPPED_STEPS = "train/skipped_steps"
TRAIN_BITS_PER_BYTE = "train/bits_per_byte"
EVAL_LOSS = "eval/loss"
EVAL_BITS_PER_BYTE = "eval/bits_per_byte"

PERF_STEP_MS = "perf/step_ms"

# The phases of a step. Each is exclusive of the others, and together they are the wall time of the step.
DATA_WAIT = "data_wait"
H2D = "h2d"
FORWARD = "forward"
BACKWARD = "backward"
COMM_EXPOSED = "comm_exposed"
OPTIMIZER = "optimizer"
CACHE_CLEAR = "cache_clear"
CHECKPOINT = "checkpoint"
EVAL = "eval"
LOGGING = "logging"
OTHER = "other"
PHASES = (
    DATA_WAIT, H2D, FORWARD, BACKWARD, COMM_EXPOSED, OPTIMIZER, CACHE_CLEAR, CHECKPOINT, EVAL, LOGGING, OTHER,
)  # fmt: skip
# What a rank does for itself and others wait for, be it only rank 0's drawing of plots: all but waiting.
OWN_WORK = tuple(phase for phase in PHASES if phase != COMM_EXPOSED)


def phase_key(phase: str) -> str:
    """`forward` -> `perf/forward_ms`."""
    return f"perf/{phase}_ms"


def spread_key(phase: str, which: str) -> str:
    """`forward`, `max` -> `perf/forward_rank_max_ms`: of the ranks' means over a window."""
    return f"perf/{phase}_rank_{which}_ms"


PERF_SLOWEST_RANK = "perf/slowest_rank"
PERF_SLOWEST_RANK_BEHIND_PCT = "perf/slowest_rank_behind_pct"
PERF_TOKENS_PER_SECOND = "perf/tokens_per_second"
PERF_TOKENS_PER_SECOND_PER_DEVICE = "perf/tokens_per_second_per_device"
PERF_USEFUL_TOKENS_PCT = "perf/useful_tokens_pct"
PERF_MFU_PCT = "perf/mfu_pct"
PERF_MFU_PALM_PCT = "perf/mfu_palm_pct"
PERF_HFU_PCT = "perf/hfu_pct"
PERF_MODEL_TFLOPS_PER_DEVICE = "perf/model_tflops_per_device"
PERF_MEMORY_ALLOCATED_GIB = "perf/memory_allocated_gib"
PERF_MEMORY_RESERVED_GIB = "perf/memory_reserved_gib"
PERF_MEMORY_PEAK_GIB = "perf/memory_peak_gib"
PERF_GPU_UTILIZATION_PCT = "perf/gpu_utilization_pct"
PERF_GPU_MEMORY_USED_PCT = "perf/gpu_memory_used_pct"
PERF_GPU_IDLE_DATA_MS = "perf/gpu_idle_data_ms"
PERF_GPU_IDLE_LAUNCH_MS = "perf/gpu_idle_launch_ms"
PERF_FLOPS_COUNTED_RATIO = "perf/flops_counted_ratio"

PERF_EPOCH_FORWARD_TIME = "perf/epoch_forward_time"
PERF_EPOCH_BACKWARD_TIME = "perf/epoch_backward_time"
PERF_EPOCH_OPTIMIZER_TIME = "perf/epoch_optimizer_time"
PERF_EPOCH_DATA_LOADING_TIME = "perf/epoch_data_loading_time"
PERF_EPOCH_AVG_MEMORY_GB = "perf/epoch_avg_memory_gb"
PERF_EPOCH_DATA_LOADING_RATIO = "perf/epoch_data_loading_ratio"
PERF_EPOCH_COMPUTE_RATIO = "perf/epoch_compute_ratio"
