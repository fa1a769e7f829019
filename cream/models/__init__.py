"""Language models: loading, chat templates, log-probs, sampling, training, rankers, and several GPUs."""
