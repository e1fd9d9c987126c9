"""Several processes that work on one run, on one Mac or more.

Start at ranks.py.
"""
