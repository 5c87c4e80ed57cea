"""Interruption drills: a job undisturbed and disturbed, and what the difference says.

plan.py (what to run) -> evidence.py (what happened, read from records, logs and events) -> measures.py (steps lost, goodput,
the interval that Young and Daly advise) -> diagnosis.py (what is wrong, and its cure) -> report.py, page.py (how it is told).
run.py is the story.
"""
