"""The command line: arguments go in, calls of the Python functions come out. Only this package imports click.

Start at main.py.
"""
