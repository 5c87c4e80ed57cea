"""optml: Amazon SageMaker training jobs on your own machine."""
