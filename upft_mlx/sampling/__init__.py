"""The sampling stage: problems go in, solutions.jsonl comes out.

Start at generate.py.
"""
