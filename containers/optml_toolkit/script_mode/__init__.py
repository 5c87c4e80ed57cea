"""Script mode: run a user's own training code as SageMaker's framework containers do.

`python -m optml_toolkit.script_mode` is what `train` is in the framework images. In the order of what happens: job.py (what was
asked for), user_code.py (fetch it), requirements.py (install what it needs), environment.py and arguments.py (how it is told),
peers.py (wait for the other hosts), launchers.py (which command), processes.py (run it, pass signals on), failure.py (say what
went wrong). AWS's counterpart is the sagemaker-training package; where the two differ on purpose, the code says so.
"""
