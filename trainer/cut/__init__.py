"""Cuts any `nn.Module` into layers without rewriting it.

A layer runs the model's own forward. The cut is at the entry of a block: what comes before is answered, not
computed, and the forward ends where the next block begins.

    blocks.py      which parts the cuts fall between
    flow.py        what every tensor of a forward depends on
    analysis.py    one forward on the meta device: what crosses each cut, and who owns which weight
    answers.py     lets parts of a model answer in place of computing
    layer.py       a layer: the model's forward, from one block's entry to the next
    direct.py      calls a block alone where the forward around it does nothing
    weights.py     initial weights of a part, without memory for the rest
    model.py       the ordered list of layers that the trainer takes
"""
