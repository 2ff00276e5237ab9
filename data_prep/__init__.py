"""Turns raw text into a token store on disk. Imports neither torch nor `training`.

Each layer imports only layers below it (checked by import-linter in `make check`):

    prepare inspect     commands
    stream/             sources as a stream of documents, without a store
    store/              the token store: built in parts, summed up, read by memory map
    encode/             text -> token ids: tokenizers and encoders
    render/             conversations -> text and the characters that carry loss
    read/               files -> records, each with its place of origin
    parse/              records -> conversations, by the names of their keys
    executor command    processes; errors in one line
    recipe/ options     recipes and their keys
    atomic_files hash_mixing    files that are complete or absent; SplitMix64
"""

from data_prep.command import explain_missing_packages

explain_missing_packages()
