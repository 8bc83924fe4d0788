"""What is done to a compressed model: AIRD (a reconstruction), its random controls, and what else a lab would try."""
