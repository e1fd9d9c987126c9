"""What can go wrong, as a tree. The command line turns each into one message and an exit status.

UpftError                 exit 1
+-- RecipeError           exit 2   the recipe (file, field, value) or an option is wrong
+-- ProblemsError                  a dataset is missing, empty, malformed or lacks a column
+-- RowsError                      a JSONL file of a run is malformed (file:line)
+-- ModelError                     a model is missing, incomplete or of an unsupported kind
+-- OfflineError                   something is not on this machine and the network is off
+-- RunDirError                    the run directory cannot be used or written
+-- TrainingError                  the data or the loss do not allow training
+-- FuseError                      fusing would lose what was trained
+-- ExportError                    another tool's format has no place for something
+-- FetchError                     there is no room for what must be downloaded
+-- PublishError                   the Hub refuses, or something must not be published
+-- RoomError                     a stage needs more memory than this machine has
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


class FuseError(UpftError):
    """Fusing would lose too much of the adapter's effect, or cannot be done as asked."""


class ExportError(UpftError):
    """Another tool's format has no place for something in the model or the adapter."""


class FetchError(UpftError):
    """There is no room for what must be downloaded."""


class PublishError(UpftError):
    """The Hub refuses, or something must not be published."""


class RoomError(UpftError):
    """A stage needs more memory than there is; raised before anything is loaded."""


class RankError(UpftError):
    """The ranks of a job do not reach each other, or work on different things."""


class MachineError(UpftError):
    """MLX does not run on this machine, or not with this Python."""
