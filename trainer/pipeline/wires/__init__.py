"""The wires that carry messages between ranks: one module each; `registry` describes how to add one."""
