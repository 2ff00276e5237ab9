from contextlib import contextmanager

from training.callbacks import first_step


def test_the_first_step_alone_is_shown(monkeypatch):
    shown = []

    @contextmanager
    def progress(what):
        shown.append(f"begin {what}")
        yield
        shown.append("end")

    monkeypatch.setattr(first_step, "progress", progress)
    callback = first_step.FirstStep()
    for _ in range(3):
        callback.on_step_begin()
        callback.on_step_end()
    callback.on_train_end()
    assert shown == ["begin compiling (the first step)", "end"]
