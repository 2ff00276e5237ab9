"""`python -m training.benchmark peers`: tokens a second of Redline and of what people use instead, on one machine.

situations   what is measured: pretraining, chat, two ranks, a large vocabulary, evaluation
sides        one object each: how a side is launched, what keeps it from running, how its result is read
inputs       text, tokenizer, recipe; rows and initial weights exported from Redline for the other sides
reading      the result of one run, from what each side writes
running      one run in processes of its own, with its peak memory; rounds in turn
report       table and page; picture: cost of a token, from several pages
scripts/     the other sides' training scripts, to be checked by a reader; they import nothing of Redline but rows.py
"""
