"""The library inside every container: it knows /opt/ml and nothing else."""
