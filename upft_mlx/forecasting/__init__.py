"""What training by a selection rule would change, before any training, from a few problems with answers.

Start at forecast.py. estimate.py has the estimator, probe.py the rule that is fitted; rated.py samples with the rules
that rate prefixes.
"""
