"""Where Hydra finds configuration groups that do not lie in one config folder.

`experiment=dct_tokenizer/dct28_420` is experiments/dct_tokenizer/dct28_420.yaml and
`tokenizer=dct14` is dct_tokenizer/presets/dct14.yaml: dropping a file there adds a choice.
"""

from __future__ import annotations

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin

from dct_vl.shipped import ROOT, shipped_folder

CONFIG_DIR = shipped_folder("experiments")
#: group → folder of its YAML files
GROUP_FOLDERS = {
    "experiment": CONFIG_DIR,
    "tokenizer": ROOT / "dct_tokenizer" / "presets",
}


class GroupFolderSource(FileConfigSource):
    """One group that is kept in a folder of another name: group://NAME=/folder."""

    def __init__(self, provider: str, path: str) -> None:
        self.group, _, folder = path.removeprefix("group://").partition("=")
        super().__init__(provider=provider, path=f"{self.scheme()}://{folder}")

    @staticmethod
    def scheme() -> str:
        """The prefix of such entries on Hydra's search path."""
        return "group"

    def load_config(self, config_path: str) -> ConfigResult:
        """Load a member of the group."""
        return super().load_config(self._inside(config_path) or "")

    def is_group(self, config_path: str) -> bool:
        """Is it this group, or a folder in it?"""
        inside = self._inside(config_path)
        return inside is not None and super().is_group(inside)

    def is_config(self, config_path: str) -> bool:
        """Is it a YAML file of the group?"""
        inside = self._inside(config_path)
        return inside is not None and inside != "" and super().is_config(inside)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Members of the group or of a folder in it."""
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else [self.group]
        inside = self._inside(config_path)
        return [] if inside is None else super().list(inside, results_filter)

    def _inside(self, config_path: str) -> str | None:
        if config_path == self.group:
            return ""
        prefix = self.group + "/"
        return config_path.removeprefix(prefix) if config_path.startswith(prefix) else None


class GroupFolders(SearchPathPlugin):
    """Adds every folder of `GROUP_FOLDERS` to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra's hook."""
        for group, folder in GROUP_FOLDERS.items():
            search_path.append(provider="dct-vl", path=f"group://{group}={folder}")


def register() -> None:
    """Make Hydra know the groups; idempotent."""
    sources = SourcesRegistry.instance()
    if GroupFolderSource.scheme() not in sources.types:
        sources.register(GroupFolderSource)
        Plugins.instance().register(GroupFolders)
