"""The Hub: what a recipe needs comes down, what a run made goes up with its card.

Start at fetch.py and upload.py.
"""
