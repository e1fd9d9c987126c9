"""The machine: what it is, which are refused, battery, heat and memory limits.

Start at requirements.py.
"""
