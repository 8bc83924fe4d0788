"""``holdfast repair``: a compressed chat model and its dense original in, a repaired checkpoint with its card out.

The stages of a study in one process: directions, the search for an edit, its control, and the measurement of all of
them. For people who do not run studies.
"""
