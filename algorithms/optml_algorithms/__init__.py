"""SageMaker's built-in algorithms, run locally. They see /opt/ml through optml_toolkit and nothing else."""
