"""AWS's built-in linear learner: same hyperparameters, data and metric lines; many candidates trained by one product."""
