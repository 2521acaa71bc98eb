"""Loggers: a module for each, whose `build(run, folder)` returns a `RunObserver`.

`logger=[name]` finds the module of that name here; adding a logger needs no other change. An import path,
`logger=[package.module:callable]`, names a logger that lives elsewhere; it is called in the same way.
"""
