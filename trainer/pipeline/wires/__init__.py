"""The wires that carry messages between ranks: a module for each; `registry` says how to add one."""
