"""Train like several_runs.py, with sleeps injected in one place a step; not a test, launched by one.

The sleeps sit in code as a user writes it or as a machine slows it down: the dataset's `__getitems__`, a forward hook
of the model, a hook on a gradient, a hook of the optimizer (below whatever DeepSpeed or accelerate wrap around it), the
garbage collection that a cache clearing calls, a model that is slow to evaluate or to save, a sink and a plot, a
callback. Every rank sleeps, but for the sink and the plot, which rank 0 alone has, and for `straggler`: rank 1 sleeps
in its last backward pass of a step, and the other one waits.

Each rank leaves `RUN/injected-RANK.json`: its sleeps, and the phases that its timer saw, both as instants of one clock,
`time.perf_counter`, which on Linux all processes share.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# Where the steps whose number has this remainder sleep. Evaluation and saving follow every fourth step, hence lie in
# the time of the next.
PERIOD, SAVE_EVERY = 12, 4
PLACES = {
    0: "plot", 1: "checkpoint", 2: "data_wait", 3: "forward", 4: "backward", 5: "eval", 6: "optimizer",
    7: "cache_clear", 8: "sink", 10: "other", 11: "straggler",
}  # fmt: skip
PHASES = {"plot": "logging", "sink": "logging", "straggler": "backward"}  # the others' are their names
ONE_RANK = ("plot", "sink", "straggler")
# 5 % of it are 2 ms; and where another rank waits, what that one does on its way to the place where it waits.
SECONDS, SECONDS_OF_ONE_RANK = 0.04, 0.5


class Sleeper:
    """Sleeps in the place whose turn it is in the step under way (steps count from 1), and keeps from when to when."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.sleeps = []
        self.steps = []
        timer = trainer.meter.timer
        self._read, timer._read = timer._read, self.read

    def __call__(self, place, *, step_counted=False):
        """`step_counted`: the Trainer has counted this step already, as it has when callbacks hear of its end."""
        step = self.trainer.state.global_step + (not step_counted)
        if PLACES.get(step % PERIOD) == place:
            start = time.perf_counter()
            time.sleep(SECONDS_OF_ONE_RANK if self.trainer.args.world_size > 1 and place in ONE_RANK else SECONDS)
            self.sleeps.append({"step": step, "place": place, "start": start, "end": time.perf_counter()})

    def read(self, opened, work):
        """The timer's own, which turns instants into seconds."""
        self.steps.append({"start": opened.start, "changes": opened.changes})
        return self._read(opened, work)

    def before(self, function, place):
        def slowed(*args, **kwargs):
            self(place)
            return function(*args, **kwargs)

        return slowed

    def write(self):
        path = self.trainer.run_dir.path / f"injected-{self.trainer.args.process_index}.json"
        path.write_text(json.dumps({"sleeps": self.sleeps, "steps": self.steps}))


def inject(trainer):
    """A sleep wherever one is found as a phase of its own."""
    from training.callbacks import cache_clearing, plotting

    sleeper = Sleeper(trainer)
    trainer.train_dataset.__getitems__ = sleeper.before(trainer.train_dataset.__getitems__, "data_wait")
    trainer.model.register_forward_pre_hook(lambda model, _: sleeper("forward" if model.training else "eval"))
    trainer.save_model = sleeper.before(trainer.save_model, "checkpoint")
    # These two stand in for what they replace, which would only take time.
    cache_clearing.gc = SimpleNamespace(collect=lambda: sleeper("cache_clear", step_counted=True))
    plotting.Plotting._plot = lambda self: sleeper("plot")
    plotting.MAX_SHARE = float("inf")
    slow_backward(trainer, sleeper)
    slow_optimizer(trainer, sleeper)
    slow_sink(trainer, sleeper)
    trainer.add_callback(slow_callback(sleeper))
    return sleeper


def slow_backward(trainer, sleeper):
    def sleep(*_):
        sleeper("backward")
        if trainer.args.process_index == 1 and trainer.accelerator.sync_gradients:
            sleeper("straggler")

    trainer.model.get_output_embeddings().register_full_backward_hook(sleep)


def slow_optimizer(trainer, sleeper):
    create = trainer.create_optimizer

    def create_slow_optimizer(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        optimizer.register_step_pre_hook(lambda *_: sleeper("optimizer"))
        return optimizer

    trainer.create_optimizer = create_slow_optimizer


def slow_sink(trainer, sleeper):
    build = trainer._build_sinks
    sink = SimpleNamespace(write=lambda _: sleeper("sink"), close=lambda: None)
    if trainer.args.process_index == 0:
        trainer.on_start(lambda max_steps: [*build(max_steps), sink])


def slow_callback(sleeper):
    from transformers import TrainerCallback

    class SlowCallback(TrainerCallback):
        """Somebody's own, which knows nothing of phases."""

        def on_step_end(self, args, state, control, **kwargs):
            sleeper("other", step_counted=True)

    return SlowCallback()


def main():
    from tests.integration import several_runs
    from training.run import session

    build = session.build_trainer
    sleepers = []

    def build_slow_trainer(*args, **kwargs):
        trainer = build(*args, **kwargs)
        sleepers.append(inject(trainer))
        return trainer

    session.build_trainer = build_slow_trainer
    code = several_runs.main(sys.argv[1:])
    for sleeper in sleepers:
        sleeper.write()
    return code


if __name__ == "__main__":
    sys.exit(main())
