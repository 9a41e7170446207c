"""Ways in which a run ends early; the message is the whole answer."""

# Exit status after Ctrl-C, as shells have it: a script that runs several
# trainings must not go on with the next one.
INTERRUPTED = 130


class FailedError(RuntimeError):
  """The run cannot go on for a reason that the message gives whole."""


class PreemptedError(Exception):
  """The machine will be taken away and everything is saved: no failure.

  Attributes:
    status: of the process's exit; that of an interrupt is not 0.
  """

  def __init__(self, message: str, status: int = 0):
    super().__init__(message)
    self.status = status
