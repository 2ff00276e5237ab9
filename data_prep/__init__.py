"""Raw text -> token store on disk. Imports neither torch nor `training`.

From top to bottom; each imports only what is below it (import-linter, `make check`):

    prepare inspect     commands
    stream/             sources as a stream of documents, without a store
    store/              the token store: built in parts, summed up, read by memory map
    encode/             text -> token ids: tokenizers and encoders
    render/             conversations -> text and the characters that carry loss
    read/               files -> records, each with its place of origin
    parse/              records -> conversations, by the names of their keys
    executor command    processes, errors of one line
    recipe/ options     what a user may say
    atomic_files hash_mixing    ground: files that are whole or absent; SplitMix64
"""

from data_prep.command import explain_missing_packages

explain_missing_packages()
