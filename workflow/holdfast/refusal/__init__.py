"""Where refusal lives: activations, the direction, compared across models, what taking it away or adding it does."""
