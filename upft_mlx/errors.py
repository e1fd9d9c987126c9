"""What can go wrong, as a tree. The command line turns each into one message and an exit status.

UpftError                 exit 1
+-- RecipeError           exit 2   the recipe (file, field, value) or an option is wrong
+-- ProblemsError                  a dataset is missing, empty, malformed or lacks a column
+-- RowsError                      a JSONL file of a run is malformed (file:line)
+-- ModelError                     a model is missing, incomplete or of an unsupported kind
+-- OfflineError                   something is not on this machine and the network is off
+-- RunDirError                    the run directory cannot be used or written
+-- TrainingError                  the data or the loss do not allow training
+-- RankError                      the processes of a job on several machines cannot work together
"""


class UpftError(Exception):
    """Base of all errors of upft_mlx; the text names the thing, its value and what to do."""

    exit_status = 1


class RecipeError(UpftError):
    """A recipe or an option is wrong; raised before anything is loaded."""

    exit_status = 2


class ProblemsError(UpftError):
    """A dataset cannot be turned into problems."""


class RowsError(UpftError):
    """A row of a JSONL file is malformed."""


class ModelError(UpftError):
    """A model folder cannot be used."""


class OfflineError(UpftError):
    """Something must be downloaded, and the network is off or out of reach."""


class RunDirError(UpftError):
    """The run directory cannot be used or written."""


class TrainingError(UpftError):
    """Training cannot start or go on."""


class RankError(UpftError):
    """The ranks of a job do not reach each other, or work on different things."""
