"""Folders that stand at the top of a checkout and inside the package of a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
#: of the checkout; in a wheel, the folder that it is installed in
ROOT = _PACKAGE.parent


def shipped_folder(name: str) -> Path:
    """experiments/ or constraints/ of the checkout, or of the wheel."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else ROOT / name
