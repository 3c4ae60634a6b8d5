"""What tracing costs each worker: arms measured side by side, with the uncertainty of every figure.

`arms` are what is compared; `worker` is the process that is measured, `load` the one that loads it; `blocks` is one
measurement; `statistics` makes intervals of many; `measurement` runs it all; `outcome` is what came of it, `tables` and
`page` show it; `command` is `kongsim overhead`. The method and its sources stand in `docs/overhead-method.md`.
"""
