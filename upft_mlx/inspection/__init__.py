"""Looking closely: previews, the browser of results, questions to a model, and the doctor.

Start at preview.py and browse.py.
"""
