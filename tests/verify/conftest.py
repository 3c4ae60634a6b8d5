"""The example project is run by its own tests, in a process of its own."""

collect_ignore = ["example"]
