"""Studies over many runs: `upft analyze`, `upft compare` and `upft sweep`.

Start at analyze.py, compare.py and sweep.py.
"""
