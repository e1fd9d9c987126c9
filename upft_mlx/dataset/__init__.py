"""The dataset stage: solutions go in, training rows (dataset/) come out.

Start at prefix.py.
"""
