"""The one exception that means "the input is wrong", and the exit codes that the project promises."""

EXIT_DONE = 0
EXIT_CRASHED = 1
EXIT_WRONG_INPUT = 2
EXIT_STOPPED_BY_SIGNAL = 75  # EX_TEMPFAIL of sysexits.h: saved, run the same command again to go on
EXIT_ORPHANED = 76  # the launcher died; the rank ended itself so that nothing holds the run folder


class UserError(Exception):
    """Wrong input. The message is one line that names the key or file, the value, and the mend.

    Entry points print it from rank 0 and end with `EXIT_WRONG_INPUT`; no stack trace is shown.
    """


class ConfigError(UserError):
    """A wrong value or an unknown key in the configuration of an experiment."""


class DataError(UserError):
    """A corpus, tokenizer or token file that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit the experiment."""
