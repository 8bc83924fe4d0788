"""The paired benchmark: harmful inputs by reference, each beside a benign counterfactual written for this project."""
