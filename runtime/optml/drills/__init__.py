"""Interruption drills: a job undisturbed and disturbed, and what the difference says.

plan.py (what to run) -> evidence.py (what happened, read from records, logs and events) -> saves.py (when checkpoints came),
costs.py (steps lost), full_disk.py, time_parts.py (goodput), advice.py (the interval that Young and Daly advise), results.py (the
same model?) -> diagnosis.py (what is wrong, and its cure) -> report.py, page.py (how it is told).
run.py is the story.
"""
