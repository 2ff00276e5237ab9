"""`StagedSaves`: a mixin that has the Trainer write its checkpoints through `checkpoints/store.py`.

| seam | what happens there |
|---|---|
| `_get_output_dir` | during a save: the directory that holds it until all is there |
| `_save_checkpoint` | files are written, the ranks agree, the checkpoint gets its name, older ones are removed |
| `_save` | an error in writing weights and tokenizer waits until the ranks agree |
| `_maybe_log_save_evaluate` | a save in the background is completed, or its error raised |
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME

from data_prep.errors import UserError
from training.checkpoints.manifest import fingerprint
from training.checkpoints.progress import Progress
from training.checkpoints.staging import Staging, copy_to_host
from training.checkpoints.store import CheckpointStore, SavingRank, StoreOptions
from training.environment import find_commit, find_redline_version, find_version
from training.metrics import names
from training.models.saved_files import complete_files, save_generation_config
from training.ranks import sum_over_ranks
from training.run_dir import RunDir

logger = logging.getLogger("redline.checkpoints")

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft")


class StagedSaves(Trainer):
    """A Trainer whose checkpoints are whole or not there. Its subclass says what else they hold (`note_progress`)."""

    settings: dict[str, Any] | None = None
    """What each checkpoint says it was trained with, dotted key -> value."""

    def open_store(self, run_dir: RunDir, options: StoreOptions) -> None:
        """Call once, when the Trainer is built. Collective."""
        if options.in_background and (obstacle := self._find_obstacle()):
            logger.info("checkpoint.async: %s, so saves are synchronous", obstacle)
            options = replace(options, in_background=False)
        self._staging: Staging | None = None
        writer = SavingRank(self.args.process_index, self.args.world_size, self.args.should_save)
        self.store = CheckpointStore(run_dir, replace(options, limit=self.args.save_total_limit), writer)
        self.args.save_total_limit = None  # the store removes checkpoints, and never the only good one

    def note_progress(self) -> tuple[Progress, Any]:
        """What a checkpoint keeps of the run, and what the order of its data is a function of. Collective."""
        raise NotImplementedError

    def span(self, phase: str) -> AbstractContextManager[None]:
        """Time inside goes to `phase`."""
        raise NotImplementedError

    def settle_store(self, error: BaseException | None) -> None:
        """Complete a save in the background before this process ends. Collective unless `error` may be of this rank
        alone: then the save is given up."""
        if error is None:
            self.store.drain()
        elif isinstance(error, UserError) or self.args.world_size == 1:
            try:
                self.store.drain()
            except UserError as second:
                logger.warning("%s", second)
        else:
            self.store.abandon()

    # ---- seams ----

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging.path.parent) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        staging = self.store.begin(self.state.global_step, self._estimate_bytes())
        if staging is None:
            return
        best = self.state.best_model_checkpoint
        with staging.collecting(self.deepspeed if self.is_deepspeed_enabled else None):
            self._staging = staging
            try:
                super()._save_checkpoint(*args, **kwargs)
            except OSError as error:  # behind the last collective of a save
                staging.fail(error)
            finally:
                self._staging = None
            self._name_best(staging)
        progress, order = self.note_progress()
        if self.args.should_save:
            staging.write(lambda: progress.write(staging.path))
        if not self.store.commit(staging, self._describe(progress, order), self.state.best_model_checkpoint):
            self.state.best_model_checkpoint = best

    def _name_best(self, staging: Staging) -> None:
        """The best checkpoint may be the one that is being written: by the name that it will have."""
        if self.state.best_model_checkpoint == str(staging.path):
            self.state.best_model_checkpoint = str(staging.target)
            if self.args.should_save:
                staging.write_now(lambda: self.state.save_to_json(str(staging.path / TRAINER_STATE_NAME)))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        staging = self._staging
        if staging is None:
            self._save_files(output_dir, state_dict)
            return
        if staging.in_background and state_dict is None:  # DeepSpeed's is a copy
            state_dict = (
                copy_to_host(cast(torch.nn.Module, self.model).state_dict(keep_vars=True))
                if self.args.should_save
                else {}
            )
        staging.write(lambda: self._save_files(output_dir, state_dict))

    def _save_files(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and output_dir is not None:
            save_generation_config(self.accelerator.unwrap_model(self.model), Path(output_dir))
            complete_files(Path(output_dir))

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.store.is_saving:
            with self.span(names.CHECKPOINT):
                self.store.poll()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            with self.span(names.CHECKPOINT):
                self.store.drain()

    # ---- facts ----

    def _find_obstacle(self) -> str | None:
        if is_deepspeed_zero3_enabled():
            return "ZeRO-3 gathers its weights while they are written"
        return "FSDP writes its shards itself" if self.is_fsdp_enabled else None

    def _describe(self, progress: Progress, order: Any) -> dict[str, Any]:
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "settings": self.settings,
            "zero_stage": int(plugin.zero_stage) if plugin else 0,
            "samples": progress.position if isinstance(progress.position, int) else None,
            "fingerprints": {"data": fingerprint(order), "config": fingerprint(self.settings)},
            "versions": dict(find_versions()),
        }

    def _estimate_bytes(self) -> float:
        """Of a checkpoint on disk: weights and optimizer state, under DeepSpeed in its files, too. Collective."""
        model: Any = self.accelerator.unwrap_model(self.model)
        optimizer: Any = self.optimizer
        own = 0.0
        if self.is_deepspeed_enabled or self.args.should_save:
            own += _count_bytes(value for state in optimizer.state.values() for value in state.values())
        if self.is_deepspeed_enabled:  # master weights
            own += _count_bytes(parameter for group in optimizer.param_groups for parameter in group["params"])
        if self.args.should_save:
            parts = [p for p in model.parameters() if p.requires_grad or not hasattr(model, "peft_config")]
            weights = sum(int(getattr(p, "ds_numel", p.numel())) * p.element_size() for p in parts)
            own += (1 + self.is_deepspeed_enabled) * weights
        return sum_over_ranks([own], self.args.device)[0]


@functools.cache
def find_versions() -> Mapping[str, Any]:
    """Of this code and of what writes the files of a checkpoint."""
    own = {"redline": find_redline_version(), "git_commit": find_commit()}
    return {**own, **{name: find_version(name) for name in PACKAGES}}


def _count_bytes(values: Any) -> float:
    return float(sum(value.nbytes for value in values if isinstance(value, torch.Tensor)))
