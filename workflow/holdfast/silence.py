"""Keeps the model libraries quiet while they load, quantize and save."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, warnings, log lines or printed text of the model libraries."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    disabled = logging.root.manager.disable
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(max(disabled, logging.WARNING))
    # Warns at every linear of every forward pass, long after this, that it computes in float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        # compressed-tensors writes its bars, and gptqmodel its log, straight to the standard streams.
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
