"""The evaluation stage: base, tuned and benchmarks go in, evaluation/ comes out.

Start at evaluate.py.
"""
