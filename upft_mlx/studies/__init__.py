"""Studies over many runs: `upft analyze` and `upft compare`.

Start at analyze.py and compare.py.
"""
