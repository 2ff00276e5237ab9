"""Redline: everything that trains, measures and reports.

Layers, imports go downwards only (held by `make check`):

    train, supervise, plan, choices, compare, report, monitor, generate, export   commands: wire only; benchmark/ beside
      run/                                              one run, from launch to final/
        inference/                                      text from a trained model
          trainers/                                     the Trainer subclass: seams, never a copied loop
            callbacks, comparing
              data, models, compiling, memory, checkpoints, reporting
                metrics                                 phase timer, FLOPs, peaks, names
                attention, loss                         kernels of both, and the choice among them
                  kernels, ranks, environment           kernels: C++ for CPUs
                  launcher_watch                          over launch
                  config, run_dir, run_lock, launch
                    optim, precision, allocator, activations    optimizers, number formats, malloc, checkpointing
                    stop_signals                    what a signal asks of a run
                    outcomes, sessions              what a supervisor hears of ranks, and their processes
                    stalls                          ranks without progress
                      data_prep                         raw text -> token store; knows no torch
"""

from data_prep.command import explain_missing_packages

explain_missing_packages()
