"""Odd image files, each with what has to become of it."""

import io
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from raw_set import encoded, picture

from data_prep.quarantine import Reason

UNTOUCHED = "untouched"  #: stored with the very same bytes
CONVERTED = "converted"  #: stored with the same pixels, upright, within JPEG's error


@dataclass(frozen=True)
class OddFile:
    data: bytes
    fate: str | set[Reason]
    #: picture that has to be stored, where it is not what Pillow decodes
    pixels: Image.Image | None = None


def expected_pixels(odd: OddFile) -> Image.Image:
    """Pillow's own decode, turned upright, over white."""
    image = odd.pixels or ImageOps.exif_transpose(Image.open(io.BytesIO(odd.data)))
    if "transparency" in image.info or "A" in image.mode:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def odd_files() -> dict[str, OddFile]:
    return {**_jpegs(), **_cut_jpegs(), **_pngs(), **_other_formats(), **_no_images(), **_sizes()}


def exif(orientation: int, order: str = "<") -> bytes:
    """An Exif block with nothing but an orientation."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + start + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def insert_segment(jpeg: bytes, code: int, body: bytes) -> bytes:
    """A JPEG with a segment more, after its first two bytes."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, code, len(body) + 2) + body + jpeg[2:]


def segment_starts(jpeg: bytes) -> list[int]:
    """Where the segments begin, up to the scan, and where the scan's data begins."""
    starts, position = [], 2
    while True:
        starts.append(position)
        following = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if jpeg[position + 1] == 0xDA:
            return [*starts, following]
        position = following


def _jpegs() -> dict[str, OddFile]:
    base = encoded(picture(1, (120, 90)), quality=90)
    save = partial(encoded, picture(2, (120, 90)))
    scan = segment_starts(base)[-1]
    frame = next(p for p in segment_starts(base) if base[p + 1] == 0xC0)
    noise = bytearray(base)
    noise[scan + 40 : scan + 400] = bytes(range(1, 181)) * 2
    files = {
        "baseline_420": OddFile(base, UNTOUCHED),
        "baseline_444": OddFile(save(subsampling=0), UNTOUCHED),
        "progressive": OddFile(save(progressive=True), UNTOUCHED),
        "optimised_restarts": OddFile(save(optimize=True, restart_marker_rows=1), UNTOUCHED),
        "grey": OddFile(encoded(picture(3, (120, 90), "L")), UNTOUCHED),
        "grey_progressive": OddFile(encoded(picture(3, mode="L"), progressive=True), UNTOUCHED),
        "rgb_without_ycc": OddFile(save(keep_rgb=True), UNTOUCHED),
        "with_profile": OddFile(save(icc_profile=_srgb()), UNTOUCHED),
        "with_comment": OddFile(save(comment=b"\xff\xd9 no end " * 20), UNTOUCHED),
        "thumbnail_inside": OddFile(
            insert_segment(base, 0xE1, b"Exif\0\0" + encoded(picture(4, (30, 30)))), UNTOUCHED
        ),
        "fill_bytes": OddFile(base[:2] + b"\xff\xff\xff" + base[2:], UNTOUCHED),
        "junk_behind": OddFile(base + b"<html>junk</html>", UNTOUCHED),
        "zeros_behind": OddFile(base + bytes(1000), UNTOUCHED),
        "second_jpeg_behind": OddFile(base + encoded(picture(5)), UNTOUCHED),
        "mpo": OddFile(save("MPO", save_all=True, append_images=[picture(6)]), UNTOUCHED),
        "junk_before": OddFile(b"\n\n" + base, {Reason.NOT_AN_IMAGE}),
        "cmyk": OddFile(encoded(picture(7, (120, 90), "CMYK"), quality=95), CONVERTED),
        "ycck": OddFile(
            simplejpeg.encode_jpeg(
                np.asarray(picture(8, (120, 90), "CMYK")).copy(), 95, "CMYK", "444"
            ),
            CONVERTED,
        ),
        "xmp_rotated": OddFile(
            insert_segment(base, 0xE1, b'http://ns.adobe.com/xap/1.0/\0 tiff:Orientation="6"'),
            CONVERTED,
        ),
        "exif_big_endian": OddFile(insert_segment(base, 0xE1, exif(6, ">")), CONVERTED),
        "exif_out_of_range": OddFile(insert_segment(base, 0xE1, exif(9)), UNTOUCHED),
        "exif_broken": OddFile(
            insert_segment(base, 0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"), UNTOUCHED
        ),
        "exif_cut": OddFile(insert_segment(base, 0xE1, exif(6)[:-9]), UNTOUCHED),
        "scan_of_noise": OddFile(bytes(noise), {Reason.CORRUPT_IMAGE, Reason.TRUNCATED_IMAGE}),
        "twelve_bits": OddFile(
            base[: frame + 4] + b"\x0c" + base[frame + 5 :], {Reason.CORRUPT_IMAGE}
        ),
        "no_height": OddFile(
            base[: frame + 5] + b"\0\0" + base[frame + 7 :], {Reason.CORRUPT_IMAGE}
        ),
        "no_tables": OddFile(_without(base, 0xDB), {Reason.CORRUPT_IMAGE}),
        "junk_between_segments": OddFile(base[:20] + b"junk" + base[20:], CONVERTED),
    }
    for orientation in range(1, 9):
        fate = UNTOUCHED if orientation == 1 else CONVERTED
        files[f"rotated_{orientation}"] = OddFile(
            insert_segment(base, 0xE1, exif(orientation)), fate
        )
    return files


def _cut_jpegs() -> dict[str, OddFile]:
    """One JPEG ended at and behind every header boundary, and in its scan."""
    base = encoded(picture(1, (120, 90)), quality=90)
    starts = segment_starts(base)
    cuts = sorted({*starts, *(start + 1 for start in starts), *(start + 3 for start in starts)})
    cuts += [len(base) // 2, len(base) - 20, len(base) - 2, len(base) - 1]
    files = {f"cut_at_{cut}": OddFile(base[:cut], {Reason.TRUNCATED_IMAGE}) for cut in cuts}
    files["cut_at_2"] = OddFile(base[:2], {Reason.CORRUPT_IMAGE})
    half = base[: len(base) // 2]
    files["cut_with_end_marker"] = OddFile(
        half + b"\xff\xd9", {Reason.TRUNCATED_IMAGE, Reason.CORRUPT_IMAGE}
    )
    files["cut_and_filled_with_zeros"] = OddFile(
        half + bytes(len(base) - len(half)), {Reason.TRUNCATED_IMAGE}
    )
    return files


def _pngs() -> dict[str, OddFile]:
    rgb = picture(10, (100, 80))
    save = partial(encoded, rgb, "PNG")
    alpha = rgb.copy()
    alpha.putalpha(picture(11, (100, 80), "L"))
    palette = rgb.quantize(64, dither=Image.Dither.NONE)
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("bomb", "x" * 5_000_000, zip=True)
    base = save()
    grey_16 = np.linspace(0, 65535, 80 * 100).astype(np.uint16).reshape(80, 100)
    eight = Image.fromarray((grey_16.astype(np.float64) / 257).round().astype(np.uint8))
    colours_16 = np.asarray(rgb).astype(np.uint16) * 257
    orientation = Image.Exif()
    orientation[0x0112] = 8
    return {
        "png_rgb": OddFile(base, CONVERTED),
        "png_grey": OddFile(encoded(rgb.convert("L"), "PNG"), CONVERTED),
        "png_one_bit": OddFile(encoded(rgb.convert("1"), "PNG"), CONVERTED),
        "png_alpha": OddFile(encoded(alpha, "PNG"), CONVERTED),
        "png_grey_alpha": OddFile(encoded(alpha.convert("LA"), "PNG"), CONVERTED),
        "png_palette": OddFile(encoded(palette, "PNG"), CONVERTED),
        "png_palette_one_clear": OddFile(encoded(palette, "PNG", transparency=3), CONVERTED),
        "png_palette_alphas": OddFile(
            encoded(palette, "PNG", transparency=bytes(range(0, 256, 4))), CONVERTED
        ),
        "png_rgb_colour_key": OddFile(save(transparency=rgb.getpixel((5, 5))), CONVERTED),
        "png_16_bit_grey": OddFile(encoded(Image.fromarray(grey_16), "PNG"), CONVERTED, eight),
        "png_16_bit_rgb": OddFile(_png_16(colours_16), CONVERTED, rgb),
        "png_rotated": OddFile(save(exif=orientation), CONVERTED),
        "png_animated": OddFile(
            save(save_all=True, append_images=[picture(12, (100, 80))]), CONVERTED
        ),
        "png_own_profile": OddFile(save(icc_profile=_srgb()), CONVERTED),
        "png_broken_profile": OddFile(save(icc_profile=b"no profile"), CONVERTED),
        "png_without_end": OddFile(base[:-12], CONVERTED),
        "png_cut": OddFile(base[: len(base) // 2], {Reason.TRUNCATED_IMAGE, Reason.CORRUPT_IMAGE}),
        "png_cut_in_header": OddFile(base[:20], {Reason.TRUNCATED_IMAGE, Reason.CORRUPT_IMAGE}),
        "png_bad_checksum": OddFile(
            base[:60] + bytes([base[60] ^ 255]) + base[61:],
            {Reason.CORRUPT_IMAGE, Reason.TRUNCATED_IMAGE},
        ),
        "png_text_bomb": OddFile(save(pnginfo=chunk), CONVERTED, rgb),
        "png_bomb": OddFile(_png_claiming(40_000, 40_000), {Reason.TOO_MANY_PIXELS}),
        "png_claims_zero": OddFile(_png_claiming(0, 10), {Reason.CORRUPT_IMAGE, Reason.TOO_SMALL}),
    }


def _other_formats() -> dict[str, OddFile]:
    rgb, second = picture(20, (90, 70)), picture(21, (90, 70))
    save = partial(encoded, rgb)
    alpha = rgb.copy()
    alpha.putalpha(picture(22, (90, 70), "L"))
    palette = rgb.quantize(64, dither=Image.Dither.NONE)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    grey = np.asarray(rgb.convert("L")).astype(np.uint16)
    return {
        "gif": OddFile(encoded(palette, "GIF"), CONVERTED),
        "gif_animated": OddFile(
            encoded(palette, "GIF", save_all=True, append_images=[second]), CONVERTED
        ),
        "gif_clear": OddFile(encoded(palette, "GIF", transparency=2), CONVERTED),
        "gif_cut": OddFile(save("GIF")[:2000], {Reason.TRUNCATED_IMAGE, Reason.CORRUPT_IMAGE}),
        "bmp": OddFile(save("BMP"), CONVERTED),
        "bmp_palette": OddFile(encoded(palette, "BMP"), CONVERTED),
        "bmp_cut": OddFile(save("BMP")[:3000], {Reason.TRUNCATED_IMAGE}),
        "webp": OddFile(save("WEBP", quality=90), CONVERTED),
        "webp_alpha": OddFile(encoded(alpha, "WEBP", lossless=True), CONVERTED),
        "webp_animated": OddFile(save("WEBP", save_all=True, append_images=[second]), CONVERTED),
        "webp_rotated": OddFile(save("WEBP", exif=orientation, lossless=True), CONVERTED),
        "webp_cut": OddFile(
            save("WEBP", lossless=True)[:500], {Reason.TRUNCATED_IMAGE, Reason.CORRUPT_IMAGE}
        ),
        "tiff": OddFile(save("TIFF"), CONVERTED),
        "tiff_packed": OddFile(save("TIFF", compression="tiff_lzw"), CONVERTED),
        "tiff_cmyk": OddFile(encoded(rgb.convert("CMYK"), "TIFF"), CONVERTED),
        "tiff_pages": OddFile(save("TIFF", save_all=True, append_images=[second]), CONVERTED),
        "tiff_rotated": OddFile(save("TIFF", exif=orientation), CONVERTED),
        "tiff_16_bit": OddFile(
            encoded(Image.fromarray(grey * 257), "TIFF"), CONVERTED, rgb.convert("L")
        ),
        "tiff_float": OddFile(encoded(rgb.convert("F"), "TIFF"), {Reason.UNSUPPORTED_IMAGE}),
        "ppm": OddFile(save("PPM"), CONVERTED),
        "pgm_16_bit": OddFile(
            b"P5 90 70 65535\n" + (grey * 257).astype(">u2").tobytes(), CONVERTED, rgb.convert("L")
        ),
        "jpeg2000": OddFile(save("JPEG2000"), CONVERTED),
        "avif": OddFile(save("AVIF", quality=95), CONVERTED),
        "ico": OddFile(encoded(rgb.resize((64, 64)), "ICO", sizes=[(64, 64)]), CONVERTED),
    }


def _no_images() -> dict[str, OddFile]:
    return {
        "zero_bytes": OddFile(b"", {Reason.EMPTY_FILE}),
        "one_byte": OddFile(b"\xff", {Reason.NOT_AN_IMAGE}),
        "zeros": OddFile(bytes(5000), {Reason.NOT_AN_IMAGE}),
        "html": OddFile(b"<!DOCTYPE html><html><body>404</body></html>", {Reason.NOT_AN_IMAGE}),
        "text": OddFile(b"not found\n", {Reason.NOT_AN_IMAGE}),
        "svg": OddFile(b'<svg xmlns="http://www.w3.org/2000/svg"/>', {Reason.NOT_AN_IMAGE}),
        "eps": OddFile(encoded(picture(30), "EPS"), {Reason.NOT_AN_IMAGE}),
        "pdf": OddFile(encoded(picture(31), "PDF"), {Reason.NOT_AN_IMAGE}),
        "tga": OddFile(encoded(picture(32), "TGA"), {Reason.NOT_AN_IMAGE}),
        "gzip": OddFile(b"\x1f\x8b\x08" + bytes(100), {Reason.NOT_AN_IMAGE}),
        "riff_sound": OddFile(b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), {Reason.CORRUPT_IMAGE}),
        "lfs_pointer": OddFile(
            b"version https://git-lfs.github.com/spec/v1\n", {Reason.NOT_AN_IMAGE}
        ),
    }


def _sizes() -> dict[str, OddFile]:
    def sized(width: int, height: int, fmt: str = "JPEG") -> bytes:
        return encoded(picture(40, (width, height)), fmt)

    return {
        "1x1": OddFile(sized(1, 1), {Reason.TOO_SMALL}),
        "1x1_png": OddFile(sized(1, 1, "PNG"), {Reason.TOO_SMALL}),
        "1x5000": OddFile(sized(1, 5000), {Reason.TOO_SMALL}),
        "27x100": OddFile(sized(27, 100), {Reason.TOO_SMALL}),
        "28x28": OddFile(sized(28, 28), UNTOUCHED),
        "28x5600": OddFile(sized(28, 5600), UNTOUCHED),
        "5601x28": OddFile(sized(5601, 28), {Reason.TOO_ELONGATED}),
        "5601x28_png": OddFile(sized(5601, 28, "PNG"), {Reason.TOO_ELONGATED}),
    }


def _without(jpeg: bytes, code: int) -> bytes:
    """A JPEG without its segments of one kind."""
    starts = segment_starts(jpeg)
    pieces = [jpeg[a:b] for a, b in pairwise(starts) if jpeg[a + 1] != code]
    return jpeg[:2] + b"".join(pieces) + jpeg[starts[-1] :]


def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", zlib.compress(bytes(1000)))
        + _png_chunk(b"IEND", b"")
    )


def _png_16(pixels: np.ndarray) -> bytes:
    """An RGB PNG of 16 bits a channel; ``pixels``: (height, width, 3) uint16."""
    height, width, _ = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", zlib.compress(raw))
        + _png_chunk(b"IEND", b"")
    )
