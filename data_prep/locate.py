"""Find and read the images of entries, in tars or in extracted folders."""

import os
import stat
from pathlib import Path

from data_prep.quarantine import Reason, Rejected
from data_prep.sources import Location, TarSource
from data_prep.tar_index import TarIndex, TarReader, member_name


class Locator:
    """Finds images of entries.

    A path ``ai2d/images/1.png`` is looked for in ``ai2d.tar`` as it stands, then without the first
    folder, then in all other tars as it stands, then as an extracted file. Links, devices and
    sparse files in tars are never followed; a path that would leave the data folder is refused.
    """

    def __init__(self, data_dir: Path, tars: list[TarSource], index: TarIndex) -> None:
        self._data_dir = data_dir
        self._index = index
        self._by_stem = {tar.stem: tar.name for tar in tars}
        self._stems = {tar.name: tar.stem for tar in tars}

    def find(self, image: str) -> Location:
        """Location of an entry's image; raises Rejected where there is none."""
        if image.startswith("/") or "\0" in image or ".." in image.split("/"):
            raise Rejected(Reason.UNSAFE_PATH, f"image {image!r} leads out of the data folder")
        name = member_name(image)
        first, _, rest = name.partition(b"/")
        own_tar = self._by_stem.get(os.fsdecode(first))
        members = self._index.find(name)
        found = [m for m in members if m.tar == own_tar]
        if own_tar is not None and not found and rest:
            found = [m for m in self._index.find(rest) if m.tar == own_tar]
        found = found or members
        if found:
            member = next((m for m in found if m.regular), None)
            if member is None:
                raise Rejected(
                    Reason.NOT_A_REGULAR_FILE, f"{image} in {found[0].tar} is a link or a device"
                )
            return Location(
                source=self._stems[member.tar],
                file=member.tar,
                offset=member.offset,
                size=member.size,
            )
        return self._find_file(image)

    def _find_file(self, image: str) -> Location:
        try:
            status = (self._data_dir / image).stat()
        except (OSError, ValueError) as error:
            raise Rejected(
                Reason.MISSING_IMAGE, f"{image} is in no tar and is no file of the data folder"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise Rejected(Reason.NOT_A_REGULAR_FILE, f"{image} is a folder or a device")
        source, slash, _ = image.removeprefix("./").partition("/")
        return Location(source=source if slash else "", file=image, offset=-1, size=status.st_size)


class ImageReader:
    """Bytes of located images."""

    def __init__(self, data_dir: Path, index_folder: Path) -> None:
        self._data_dir = data_dir
        self._tars = TarReader(data_dir, index_folder)

    def read(self, location: Location) -> bytes:
        try:
            if location.offset < 0:
                return (self._data_dir / location.file).read_bytes()
            data = self._tars.read(location.file, location.offset, location.size)
        except OSError as error:
            raise Rejected(Reason.UNREADABLE_SOURCE, str(error)) from error
        if len(data) != location.size:
            raise Rejected(
                Reason.UNREADABLE_SOURCE,
                f"{location.file} ends {location.size - len(data)} bytes before the image does",
            )
        return data

    def close(self) -> None:
        self._tars.close()
