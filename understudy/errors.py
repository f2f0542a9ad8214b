"""Every error that a person may meet, with the exit code the command line ends with.

    UnderstudyError                  1   anything else that went wrong, said in one paragraph
    ├── ConfigError                  2   params or usage: all problems at once, with the closest valid name
    ├── DataRefused                  3   demonstrations that cannot be trusted: too many bad rows, none left
    │   └── UnencodableText          3   a model cannot be given this text: its chat template or tokenizer has no way
    ├── GateRefused                  4   a promotion without enough evidence
    ├── ServiceUnreachable           5   MLflow, object storage or another service does not answer
    ├── DriftFound                   6   what comes in is not what the model was trained for: retraining is proposed
    ├── IntegrityError               1   a digest, a manifest or a record does not match its content
    │   └── ContentMissing           1   stored content is not there: never completed, or deleted since
    ├── TrainingDiverged             1   a loss or gradient is not finite; nothing was updated with it
    ├── WorkdirBusy                  2   another run holds the working directory
    └── Preempted                   75   interrupted; the same command resumes

A message says what happened, both values and the remedy, in one paragraph. It never holds a secret.
"""

from __future__ import annotations


class UnderstudyError(Exception):
    """Base of all errors meant for people; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(UnderstudyError):
    """The params, the command line or the environment are wrong; lists every problem."""

    exit_code = 2


class DataRefused(UnderstudyError):
    """The demonstrations are refused; nothing but the quarantine file was written."""

    exit_code = 3


class UnencodableText(DataRefused):
    """A text cannot be given to a model as it stands; in demonstrations the row is set aside with this reason."""


class GateRefused(UnderstudyError):
    """A promotion is refused by the gate."""

    exit_code = 4


class ServiceUnreachable(UnderstudyError):
    """A service named by the params does not answer; the message names its URI."""

    exit_code = 5


class DriftFound(UnderstudyError):
    """Live rows differ from the training distribution by more than the stated thresholds."""

    exit_code = 6


class IntegrityError(UnderstudyError):
    """Stored content does not match the digest its record or manifest names."""


class ContentMissing(IntegrityError):
    """Stored content, or a file of it, is not there: it was never completed, or it was deleted since."""


class TrainingDiverged(UnderstudyError):
    """A loss, reward or gradient stopped being finite; raised before the update."""


class WorkdirBusy(UnderstudyError):
    """Another process holds the lock of the working directory."""

    exit_code = 2


class Preempted(UnderstudyError):
    """Interrupted by a signal after the state was saved; run the same command to resume."""

    exit_code = 75
