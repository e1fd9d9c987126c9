"""Several processes that work on one run, on one Mac or more.

What goes in is one process's part of the work, what comes out is what all have made. Start at seam.py, which others
use; ranks.py does it.
"""
