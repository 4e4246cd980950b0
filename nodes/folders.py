"""The pack's model folders in the host."""

from __future__ import annotations

import os

import folder_paths

MODEL_FOLDER = "paint_by_example"
MODEL_EXTENSIONS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
EXEMPLAR_FOLDER = "pbe_exemplars"
EXEMPLAR_EXTENSIONS = {".safetensors"}


class Choices:
    """The files in one of the host's folders, as a node offers them.

    Args:
        folder: Its name in the host.
        none: What stands in the list where there is no file.
        advice: What to say to a user who runs the node so.
    """

    def __init__(self, folder: str, none: str, advice: str) -> None:
        self.folder = folder
        self.none = none
        self.advice = advice

    def names(self) -> list[str]:
        """For the node's list."""
        return folder_paths.get_filename_list(self.folder) or [self.none]

    def path(self, choice: str) -> str:
        """Path of a name in the list, resolved inside its folder.

        Raises:
            ValueError: There was no file to choose.
        """
        if choice == self.none:
            raise ValueError(self.advice)
        return folder_paths.get_full_path_or_raise(self.folder, choice)

    def fingerprint(self, choice: str) -> float:
        """Changes when the file does, so that a replaced one is loaded again."""
        return 0.0 if choice == self.none else os.path.getmtime(self.path(choice))


def register_folders() -> None:
    """Tell the host which folders to search; makes none of them.

    Checkpoints: `models/paint_by_example`. Encoded exemplars: `models/pbe_exemplars`, and what Save
    Exemplar wrote.
    """
    models = folder_paths.models_dir
    _register(MODEL_FOLDER, MODEL_EXTENSIONS, os.path.join(models, MODEL_FOLDER))
    _register(
        EXEMPLAR_FOLDER,
        EXEMPLAR_EXTENSIONS,
        os.path.join(models, EXEMPLAR_FOLDER),
        saved_exemplars(),
    )


def saved_exemplars() -> str:
    """The folder that Save Exemplar writes to."""
    return os.path.join(folder_paths.get_output_directory(), "exemplars")


def _register(name: str, extensions: set[str], *paths: str) -> None:
    for path in paths:
        folder_paths.add_model_folder_path(name, path)
    # The host's own sets of extensions are shared between its folders; this one is ours.
    known, _ = folder_paths.folder_names_and_paths[name]
    folder_paths.folder_names_and_paths[name] = (known, set(extensions))
