"""The command line: one file per verb, shared options in `options.py`."""
