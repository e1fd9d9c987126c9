"""Models: a recipe's model name goes in, a loaded model with its tokenizer comes out.

Start at load.py.
"""
