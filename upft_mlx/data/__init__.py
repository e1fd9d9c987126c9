"""Data: files and Hub datasets go in, problems and benchmarks come out.

Start at problems.py.
"""
