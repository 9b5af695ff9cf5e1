"""Other libraries' chatter, held back for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def quiet() -> Iterator[None]:
    """Within: no progress bars, hints or warnings of transformers, and no start-up lines of what it imports."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    # A filter, not a level: DeepSpeed sets its logger's level when it is imported, which may happen in here.
    deepspeed = logging.getLogger("DeepSpeed")
    deepspeed.addFilter(_errors_only)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        deepspeed.removeFilter(_errors_only)
