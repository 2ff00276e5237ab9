"""After the last step: `final/`, a check that it loads and computes the same, a sample, the summary, the report.

`final/` is what a user takes away, so it is not believed but loaded again, from disk, by the public
`from_pretrained`, and one forward pass is compared with the model in memory. The model that came
back from disk then writes the sample.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from data_prep.errors import UserError
from data_prep.prepare import Prepared
from data_prep.progress import progress
from data_prep.store.store import Store
from data_prep.store.summary import LEFT_OUT
from training.config import LoadedConfig
from training.data.batch import BATCH_INFO
from training.inference.sample import Sample, write_sample
from training.memory.comparison import MemoryBase, PeakComparison, compare_peak
from training.metrics import names
from training.metrics.matmuls import find_matmuls, uses_input_grad_hook
from training.metrics.memory import measure_memory
from training.metrics.roofline import Traffic, count_optimizer_work, find_roofline
from training.models.planned import build_planned_model
from training.models.stop_tokens import Chats
from training.models.trained import load_trained, measure_difference
from training.optim.choose import choose_optimizer
from training.optim.facts import Optimizer
from training.precision import find_precision
from training.reporting.facts import facts_from_summary
from training.reporting.html import build_report
from training.reporting.run_reader import load_run
from training.reporting.screen import format_summary
from training.reporting.summary import Summary
from training.run.build import find_table
from training.trainers.finite import check_weights
from training.trainers.own_run import find_phases_ms
from training.trainers.own_run import summarize as summarize_training
from training.trainers.recipe_trainer import RecipeTrainer

logger = logging.getLogger("redline.train")


def finish_run(loaded: LoadedConfig, prepared: Prepared, trainer: RecipeTrainer, memory_base: MemoryBase) -> None:
    """Save, check, sample, sum up, report. Collective; rank 0 writes and prints.

    memory_base: of this process before its model was built.
    """
    run_dir = trainer.run_dir
    totals = trainer.meter.run_totals() if trainer.meter else {}
    # Before this saves and loads, after the last evaluation, which no record has seen.
    own_peak_gib = measure_memory(trainer.args.device)[names.PERF_MEMORY_PEAK_GIB] if trainer.meter else None
    data = describe_data(prepared, trainer)
    check_weights(trainer, "final: not written")
    trainer.save_model(str(run_dir.final))
    chosen = choose_optimizer(loaded.config.arguments(), loaded.deepspeed)
    roofline = measure_roofline(trainer, totals, chosen.facts)
    batch = _one_row(trainer)
    reference = _forward_in_memory(trainer, batch)
    if trainer.is_world_process_zero():
        unset_hf_deepspeed_config()  # or, after ZeRO-3, loading would partition the model over ranks that do not come
        sample = None
        if loaded.config.checkpoint.verify_final:
            with progress("loading final/ again and comparing it"):
                model = load_trained(
                    run_dir.final,
                    device=trainer.args.device,
                    dtype=find_precision(vars(trainer.args)).dtype if loaded.config.adapter.load_in_4bit else "auto",
                    adapter=loaded.config.adapter,
                    trust_remote_code=loaded.config.model.trust_remote_code,
                )
                check_same_weights(model, trainer)
                check_same_logits(model, batch, reference, trainer)
            source = prepared.stream or Store.open(cast(Path, prepared.store_dir))
            table = find_table(trainer.eval_dataset or trainer.train_dataset)
            sample = write_sample(model, trainer, Chats.of(source), table, loaded.config.monitor.sample_prompt)
        run_dir.append_event("final", trainer.state.global_step, "final/ written" + " and checked" * bool(sample))
        measured = Measured(totals, memory_base, own_peak_gib, roofline, sample)
        summary = summarize(loaded, data, trainer, measured)
        run_dir.write_json(run_dir.summary, summary.as_json())
        forget_exceeded_ceiling(summary, trainer)
        try:
            with progress("drawing the report"):
                build_report(run_dir.path)
        except Exception as error:  # the run is over and saved: a page that cannot be drawn is no reason to fail it
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            logger.warning("report: not built (%s); python -m training.report %s builds it", reason, run_dir.path)
        print(format_summary(summary, run_dir.path), flush=True)
    if dist.is_initialized():
        dist.barrier()


def measure_roofline(trainer: RecipeTrainer, totals: dict[str, float], chosen: Optimizer) -> dict[str, Any] | None:
    """The phases of a step against the machine's ceilings, as the summary has them; None where nothing was measured.

    Collective: all ranks copy at once, as they train at once.
    """
    meter, args = trainer.meter, trainer.args
    work = meter.run_work() if meter else None
    if meter is None or meter.peak is None or meter.calibrator is None or work is None:
        return None
    try:
        bandwidth = meter.calibrator.find_bandwidth()
    except RuntimeError as error:  # the run is over and saved: no memory left for this is no reason to end it
        logger.warning("memory bandwidth: not measured (%s)", str(error).splitlines()[0])
        return None
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    matmuls = find_matmuls(model, embeddings_need_grad=uses_input_grad_hook(model))
    itemsize = find_precision(vars(args)).dtype.itemsize
    traffic = Traffic.of(matmuls, itemsize)
    engine: Any = trainer.deepspeed if trainer.is_deepspeed_enabled else None
    optimizer: Any = engine.basic_optimizer if engine is not None else trainer.optimizer
    step = count_optimizer_work(optimizer, chosen, args.device)
    phases = find_roofline(find_phases_ms(totals), work, traffic, step, meter.peak, bandwidth)
    return {
        "gigabytes_per_second": bandwidth.gigabytes_per_second,
        "spread_pct": bandwidth.spread_pct,
        "phases": [{**asdict(phase), "reached_pct": phase.reached_pct} for phase in phases],
    }


def _one_row(trainer: RecipeTrainer) -> dict[str, Any]:
    """One validation row (or training row) as a batch on the device."""
    dataset: Any = trainer.eval_dataset or trainer.train_dataset
    batch = trainer.data_collator([dataset[0]])
    return {
        key: value.to(trainer.args.device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
        if key not in (BATCH_INFO, "labels")
    }


def _forward_in_memory(trainer: RecipeTrainer, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (1, seq_len, vocab) of the trained model; every rank takes part, since ZeRO-3 gathers its weights."""
    model: Any = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model
    model.eval()
    return _logits(model, batch, trainer)


def _logits(model: Any, batch: dict[str, Any], trainer: RecipeTrainer) -> torch.Tensor:
    dtype = find_precision(vars(trainer.args)).dtype
    autocast = dtype != torch.float32 and not trainer.is_deepspeed_enabled
    with torch.no_grad(), torch.autocast(trainer.args.device.type, dtype=dtype, enabled=autocast):
        # With a KV cache transformers does not look for the documents of a packed row.
        logits = model(**batch, use_cache=False).logits.float().cpu()
    real = batch.get("attention_mask")  # what stands at padding is nobody's: attention kernels differ there
    return logits if real is None else logits[real.bool().cpu()].unsqueeze(0)


def check_same_weights(model: torch.nn.Module, trainer: RecipeTrainer) -> None:
    """Every parameter that was trained came back from disk, equal in the narrower of the two types.

    Finds the single tensor that rounding in the logits would hide. Not under ZeRO-3, where no rank has whole ones.
    """
    loaded = dict(model.named_parameters())
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    for name, ours in trained.named_parameters():
        if not ours.requires_grad or hasattr(ours, "ds_id"):
            continue
        theirs = loaded.get(name)
        dtype = min((ours.dtype, theirs.dtype if theirs is not None else ours.dtype), key=lambda kind: kind.itemsize)
        if theirs is None or not torch.equal(ours.detach().to(dtype), theirs.detach().to(dtype)):
            what = "is missing" if theirs is None else "differs from the trained one"
            raise UserError(
                f"{trainer.run_dir.final}: reloaded, {name} {what}; the last checkpoint is the one to trust"
            )


def check_same_logits(
    model: torch.nn.Module, batch: dict[str, Any], reference: torch.Tensor, trainer: RecipeTrainer
) -> None:
    """Compare a forward pass of the model from disk with the one in memory.

    The measure is the root mean square of the difference over the standard deviation of the logits. Usually it is 0.
    The limit is that of the precision: it leaves room for rounding, which a deep model amplifies.
    """
    if not bool(reference.isfinite().all()):
        raise UserError(
            f"{trainer.run_dir.final}: the trained model computes logits that are not finite, though its weights are: "
            "training has diverged (too high a training.learning_rate?); use an earlier checkpoint"
        )
    computed = _logits(model.eval(), batch, trainer)
    error = measure_difference(computed, reference)
    limit = find_precision(vars(trainer.args)).reload_tolerance
    if not error <= limit:
        raise UserError(
            f"{trainer.run_dir.final}: reloaded, it computes other logits than the model in memory "
            f"(rms difference {error:.3g} standard deviations); the last checkpoint is the one to trust"
        )
    logger.info("final/ reloads, and its logits equal those in memory (rms difference %.1e std)", error)


def describe_data(prepared: Prepared, trainer: RecipeTrainer) -> dict[str, Any]:
    """What was trained on. Of a stream, no more is known than what was counted on the way. Collective."""
    position = trainer.train_batches.position
    if prepared.store_dir is None:
        counts = position["counts"]
        return {
            "store": None,
            "streamed": True,
            "unigram_entropy_nats": None,
            "bad_records": counts["bad_records"],
            "left_out": {key: counts[key] for key in ("too_short", "too_long", "labelled_false", "dropped")},
            "packed": {key: counts[key] for key in ("split", "truncated", "silent")},
        }
    manifest = Store.open(prepared.store_dir).manifest
    return {
        "store": str(prepared.store_dir),
        "streamed": False,
        "unigram_entropy_nats": manifest.unigram_entropy_nats,
        "bad_records": manifest.bad_records,
        "left_out": {key: getattr(manifest, key) for key in LEFT_OUT},
    }


@dataclass(frozen=True)
class Measured:
    """What was measured of a run beside its records."""

    totals: dict[str, float]
    """`Meter.run_totals()`."""
    memory_base: MemoryBase
    own_peak_gib: float | None
    """Of this process; the records have those of the processes before it."""
    roofline: dict[str, Any] | None
    sample: Sample | None


def summarize(loaded: LoadedConfig, data: dict[str, Any], trainer: RecipeTrainer, measured: Measured) -> Summary:
    """The facts of a finished run."""
    run = load_run(trainer.run_dir.path)
    own = summarize_training(trainer, trainer.run_dir, measured.totals)
    peaks_gib = [own.peak_memory_gib, measured.own_peak_gib]
    plan = _compare_memory(loaded, trainer, measured.memory_base, measured.own_peak_gib)
    return replace(
        own,
        epochs=trainer.train_batches.passes,
        tokens=trainer.progress.tokens,
        train_seconds=trainer.progress.seconds,
        bits_per_byte_last=run.series(names.TRAIN_BITS_PER_BYTE).last(),
        eval_bits_per_byte_last=run.series(names.EVAL_BITS_PER_BYTE).last(),
        text_bytes=trainer.progress.text_bytes or None,
        tokenizer_cuts=run.recorded("tokenizer_cuts"),
        **data,
        roofline=measured.roofline,
        peak_memory_gib=max(filter(None, peaks_gib), default=None),
        memory_plan=asdict(plan),
        recipe=loaded.recipe,
        sample=asdict(measured.sample) if measured.sample else None,
    )


def forget_exceeded_ceiling(summary: Summary, trainer: RecipeTrainer) -> None:
    """A rate that this run exceeded was measured beside other programs: the next start measures it again."""
    meter = trainer.meter
    if meter and meter.calibrator and meter.ceiling and facts_from_summary(summary).exceeds_ceiling:
        logger.warning(
            "this model's matmuls alone seemed to reach %.3g TFLOP/s and the run was faster: other programs had slowed "
            "that measurement; the next start makes it again",
            meter.ceiling.tflops,
        )
        meter.calibrator.forget(meter.ceiling)


def _compare_memory(
    loaded: LoadedConfig, trainer: RecipeTrainer, base: MemoryBase, peak_gib: float | None
) -> PeakComparison:
    args = trainer.args
    build = partial(build_planned_model, loaded.config)
    return compare_peak(loaded, build, base, peak_gib, world_size=args.world_size, device=args.device)
