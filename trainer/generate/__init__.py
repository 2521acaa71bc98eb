"""Writes texts with a language model that is cut into stages.

prompts.py     what to continue, from the command line, a file or standard input
model.py       the trained model, its tokenizer and its limits
texts.py       which texts are in flight: they join and leave groups as they end
rounds.py      some tokens of every group, as one schedule on the engine
stages.py      a stage's layers with their keys and values
sampling.py    the choice of the next token
writer.py      all of it: from prompts to texts
"""
