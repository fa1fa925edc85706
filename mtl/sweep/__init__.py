"""Sweeps: many runs of one configuration with other task weights and learning rates, and which of them is best.

Nothing here knows Ray. settings.py, space.py and objective.py are what is searched, and for what; terms.py is all that
makes trials comparable; proposals.py chooses the next point; record.py keeps sweep.json, the truth about a sweep;
board.py hands out trials and takes in what became of them; pareto.py, picture.py and results.py show it; capacity.py
is the arithmetic of resources. local.py runs the trials in this process, one after the other; mtl/on_ray/tune.py on a
cluster.
"""
