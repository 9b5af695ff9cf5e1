"""The one exception that means "the input is wrong", and the exit codes that the project promises."""

EXIT_DONE = 0
EXIT_CRASHED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130  # Ctrl-C where there was nothing to save
EXIT_STOPPED_BY_SIGNAL = 75  # EX_TEMPFAIL of sysexits.h: saved, run the same command again to go on
EXIT_ORPHANED = 76  # the launcher died; the rank ended itself so that nothing holds the run folder
EXIT_HANG = 77  # training stood still or a rank was lost: the watchdog ended the job, run the same command again
EXIT_UNSTABLE = 78  # the policy ended a run that went wrong: the last good checkpoint stays, change something first


class UserError(Exception):
    """Wrong input. The message is one line that names the key or file, the value, and the mend.

    Entry points print it from rank 0 and end with its `exit_code`; no stack trace is shown.
    """

    exit_code = EXIT_WRONG_INPUT
    of_this_rank = False
    """Whether the rank that met it says so itself, because rank 0 has not met it."""


class ConfigError(UserError):
    """A wrong value or an unknown key in the configuration of an experiment."""


class DataError(UserError):
    """A corpus, tokenizer or token file that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit the experiment."""


class SaveFailed(UserError):
    """A checkpoint could not be written; the earlier ones are untouched."""

    exit_code = EXIT_CRASHED


class WriteFailed(UserError):
    """The run's folder cannot be written to (a full disk); nothing in it is half, its checkpoints are whole."""

    exit_code = EXIT_CRASHED


class FolderLost(UserError):
    """run.dir is another folder than the one that this session writes to, which it cannot find any more."""


class ResumeMismatch(UserError):
    """The first loss after a resume is not the one that belongs there."""

    exit_code = EXIT_CRASHED


class CanaryFailed(UserError):
    """The layout does not compute what one process computes."""

    exit_code = EXIT_CRASHED


class Diverged(UserError):
    """The gradient stayed not finite, so that no step could be made."""

    exit_code = EXIT_CRASHED


class RanksMissing(UserError):
    """Processes of the job did not find each other."""

    exit_code = EXIT_HANG


class DeviceMissing(UserError):
    """This machine has no device for a rank."""

    of_this_rank = True
