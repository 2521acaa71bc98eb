"""Random small models, data and layouts, each a pure function of one number, verified against a plain loop.

sketch     what a number stands for: kinds of layers, form of the data, loss
layers_*   the layers: every kind of custom code that a forward may contain
carriers   in what an activation travels: tensors, tuples, dicts, named tuples, packed sequences, ...
data, losses, optimizers
faults     mistakes that must be refused
cases      the configuration of a number on some ranks: layout, schedule, precision, optimizer
rank       runs cases, one after another, in ranks that start once
run        `python -m tests.generated.run`: runs them for as long as asked
"""
