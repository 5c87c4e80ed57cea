"""AWS's built-in XGBoost in algorithm mode: same hyperparameters, data, metric lines and model file."""
