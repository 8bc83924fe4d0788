"""Keeps the model libraries quiet while they load and save."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, warnings or log lines of the model libraries while they load and save."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Warns at every linear of every forward pass that it computes in float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        # compressed-tensors writes its bars straight to stderr and has no switch for them.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
