"""The data benchmark: one module a subject, each row against its real alternative.

command     the command line, and the order of things
inputs      settings; text, tokenizer and stores that several rows share
building    raw text to a store: speed, memory, cost against size, opening what is there
packing     lengths to rows
loading     rows to batches, and starting in the middle
row         what a row says
report      JSON to docs/results/data.md and its plot
text        a directory of files to JSONL
"""
