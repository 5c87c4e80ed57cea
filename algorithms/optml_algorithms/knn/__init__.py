"""AWS's built-in k-NN on faiss: same hyperparameters, data, metric lines and model files."""
