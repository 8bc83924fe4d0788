"""What a results folder holds about a cell, as measures: one module a kind."""
