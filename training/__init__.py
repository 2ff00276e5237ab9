"""Redline: everything that trains, measures and reports.

Layers, imports go downwards only (held by `make check`):

    train, plan, compare, report, monitor, generate, export    entrypoints: wire only
      build                                             config -> model, data, callbacks, trainer
        trainers                                        the Trainer subclass: seams, never a copied loop
          callbacks, comparing
            data, models, memory, checkpoints, reporting
              metrics                                   phase timer, FLOPs, peaks, names
                config, run_dir, launch
                  data_prep                             raw text -> token store; knows no torch
"""
