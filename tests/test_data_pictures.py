"""Pictures as a viewer shows them, sizes, and how pictures and masks are cut to them."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from spectral_adapters.trainer import pictures
from spectral_adapters.trainer.decode import decode
from spectral_adapters.trainer.picture_tensors import mask_tensor, to_tensor
from spectral_adapters.trainer.pictures import bucket_sizes, cut, nearest, on_white, opacity, place

SIDE = st.integers(1, 3000)
GRID = st.sampled_from([(64, 16), (256, 64), (512, 64), (768, 64), (1024, 64), (1024, 32), (1056, 64)])


def through_a_file(image: Image.Image, format: str, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format, **options)
    return decode(file.getvalue())


# --- what a picture shows


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (40, 20), (35, 10)),
        (2, (40, 20), (5, 10)),
        (3, (40, 20), (5, 10)),
        (6, (20, 40), (10, 35)),
        (8, (20, 40), (10, 5)),
    ],
)
def test_exif_orientation_is_honoured(format, orientation, size, red):
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (20, 0, 40, 20))
    exif = image.getexif()
    exif[0x0112] = orientation
    shown = through_a_file(image, format, exif=exif)
    assert shown.size == size
    assert shown.getpixel(red)[0] > 200 and shown.getpixel((size[0] - 1 - red[0], size[1] - 1 - red[1]))[2] > 200


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("PA", "TIFF"),
        ("RGBA", "WEBP"),
        ("RGBA", "TIFF"),
        ("RGBA", "AVIF"),
    ],
)
def test_transparency_lies_on_white_and_is_the_mask(mode, format):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode == "PA":
        alpha, image = image.getchannel("A"), Image.new("PA", image.size)
        image.putpalette(bytes(768))
        image.putalpha(alpha)
    else:
        image = image.convert(mode)
    found = through_a_file(image, format, **({"lossless": True} if format == "WEBP" else {}))
    shown, mask = on_white(found), opacity(found)
    assert shown.mode == "RGB" and mask.mode == "L"
    assert max(shown.getpixel((1, 1))) < 8 and min(shown.getpixel((6, 1))) > 247
    assert mask.getpixel((1, 1)) == 255 and mask.getpixel((6, 1)) == 0


@pytest.mark.parametrize("kind", [bytes, int])
def test_transparent_colours_of_a_palette(kind):
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2, 1])
    found = through_a_file(image, "PNG", transparency=b"\xff\x00\xff" if kind is bytes else 1)
    assert list(on_white(found).tobytes()) == [255, 0, 0, 255, 255, 255, 0, 0, 255, 255, 255, 255]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_greys(format):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    shown = on_white(through_a_file(Image.fromarray(ramp), format))
    assert shown.mode == "RGB"
    assert np.abs(np.asarray(shown)[..., 0] - ramp / 257).max() <= 0.5


def test_other_modes_show_their_colours():
    red = Image.new("RGB", (16, 16), (250, 20, 10))
    for found in (
        through_a_file(red.convert("CMYK"), "JPEG", quality=95),
        through_a_file(red.convert("CMYK"), "TIFF"),
        through_a_file(red.convert("YCbCr"), "TIFF"),
        through_a_file(red.quantize(4), "PNG"),
        through_a_file(red, "BMP"),
    ):
        assert np.abs(np.array(on_white(found).getpixel((8, 8))) - (250, 20, 10)).max() <= 6
    assert on_white(through_a_file(Image.new("1", (4, 4), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)


def foreign_profile() -> bytes:
    """An ICC profile of a screen whose red and green lamps are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in (b"XYZ", b"TRC"):
        profile = profile.replace(b"r" + name, b"#" + name).replace(b"g" + name, b"r" + name).replace(b"#", b"g")
    return profile.replace("sRGB".encode("utf-16-be"), "GRGB".encode("utf-16-be"))


@pytest.mark.parametrize(("mode", "format"), [("RGB", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP")])
def test_colours_of_a_profile_become_srgb(mode, format):
    red = Image.new(mode, (16, 16), "red")
    shown = on_white(through_a_file(red, format, icc_profile=foreign_profile()))
    assert np.abs(np.array(shown.getpixel((8, 8))) - (0, 255, 0)).max() <= 4
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, b"damaged", foreign_profile()[:200]):
        shown = on_white(through_a_file(red, format, icc_profile=profile))
        assert np.abs(np.array(shown.getpixel((8, 8))) - (255, 0, 0)).max() <= 4


def test_a_phones_photograph_with_a_preview_is_a_picture():
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert decode(file.getvalue()).size == (32, 32)


def test_pixels_run_from_minus_one_to_one():
    image = Image.new("RGB", (2, 1), "black")
    image.putpixel((1, 0), (255, 0, 255))
    assert to_tensor(image).tolist() == [[[-1, 1]], [[-1, -1]], [[-1, 1]]]


# --- sizes


@given(GRID)
def test_sizes_are_of_one_area(grid):
    resolution, step = grid
    sizes = bucket_sizes(resolution, step)
    assert len(set(sizes)) == len(sizes) and (resolution, resolution) in sizes
    assert set(sizes) == {(height, width) for width, height in sizes}
    for width, height in set(sizes) - {(resolution, resolution)}:
        assert width % step == height % step == 0
        assert 0.7 * resolution**2 <= width * height <= resolution**2
        assert 0.5 <= width / height <= 2
    assert bucket_sizes(resolution, step, buckets=False) == ((resolution, resolution),)


def test_the_sizes_of_stable_diffusion():
    assert bucket_sizes(512, 64) == ((320, 640), (384, 640), (448, 576), (512, 512), (576, 448), (640, 320), (640, 384))
    assert {(704, 1408), (768, 1344), (832, 1216), (896, 1152), (1024, 1024)} <= set(bucket_sizes(1024, 64))


@given(GRID, SIDE, SIDE)
def test_the_nearest_size_loses_least(grid, width, height):
    sizes = bucket_sizes(*grid)
    chosen = nearest(sizes, (width, height))

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] * height / (size[1] * width)))

    assert all(distance(chosen) <= distance(other) + 1e-6 for other in sizes)
    assert nearest(sizes, chosen) == chosen


# --- cutting


@given(GRID, SIDE, SIDE, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.booleans())
def test_crops_lie_inside_and_say_so(grid, width, height, across, down, flip):
    assume(max(width, height) <= 50 * min(width, height))
    size = nearest(bucket_sizes(*grid), (width, height))
    for at in (None, (across, down)):
        crop = place((width, height), size, at, flip)
        assert 0 <= crop.left <= crop.scaled[0] - size[0] and 0 <= crop.top <= crop.scaled[1] - size[1]
        assert crop.scaled[0] == size[0] or crop.scaled[1] == size[1]
        assert abs(crop.scaled[0] / width - crop.scaled[1] / height) <= 1 / min(width, height)
        assert 0 <= crop.lost < 1
        left = crop.scaled[0] - crop.left - size[0] if flip else crop.left
        assert crop.conditioning == (height, width, crop.top, left, size[1], size[0])
    assert place((width, height), size, (0.0, 0.0)).conditioning[2:4] == (0, 0)


def test_a_random_crop_reaches_both_ends():
    tops = {place((64, 70), (64, 64), (0.5, at / 100)).top for at in range(100)}
    assert tops == set(range(7))


def test_a_mirrored_crop_states_its_left_edge_in_the_mirrored_picture():
    """The sample equals one whose file was mirrored, size conditioning included."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 100, 3), dtype=np.uint8))
    crop = place(image.size, (48, 48), (0.2, 0.5), flip=True)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    other = pictures.Crop(crop.original, crop.scaled, crop.conditioning[3], crop.top, crop.size)
    assert crop.left != other.left and other.conditioning == crop.conditioning
    difference = np.asarray(cut(image, crop), int) - np.asarray(cut(mirrored, other), int)
    assert np.abs(difference).max() <= 1


def test_pictures_are_cut_around_the_centre():
    image = Image.new("RGB", (120, 60), "black")
    image.paste("white", (30, 0, 90, 60))
    tensor = to_tensor(cut(image, place(image.size, (32, 32))))
    assert tensor.shape == (3, 32, 32) and float(tensor[:, :, 2:30].min()) > 0.98 and float(tensor.max()) == 1.0


@pytest.mark.parametrize("flip", [False, True])
def test_masks_follow_their_pictures(flip):
    """A picture whose red is its own mask: after cutting, the mask is still where the red is."""
    red = Image.fromarray((np.random.default_rng(1).random((60, 100)) > 0.5).astype(np.uint8) * 255)
    red = red.resize((300, 180), Image.Resampling.NEAREST)
    image = Image.merge("RGB", (red, Image.new("L", red.size), Image.new("L", red.size)))
    crop = place(image.size, (96, 96), (0.3, 0.9), flip)
    mask = mask_tensor(red, crop, 8)
    assert mask.shape == (1, 12, 12) and mask.dtype == torch.float32 and mask.min() >= 0 and mask.max() <= 1
    shown = (to_tensor(cut(image, crop, Image.Resampling.BOX))[0] + 1) / 2
    assert torch.allclose(mask[0], shown.reshape(12, 8, 12, 8).mean(dim=(1, 3)), atol=1e-6)


def test_a_masks_own_size_does_not_matter():
    mask = Image.new("L", (100, 60), 0)
    mask.paste(255, (50, 0, 100, 60))
    crop = place((400, 240), (64, 48))
    small, large = mask_tensor(mask, crop, 4), mask_tensor(mask.resize((800, 480), Image.Resampling.BOX), crop, 4)
    assert torch.allclose(small, large, atol=0.3) and small[0, :, :7].max() == 0 and small[0, :, 9:].min() == 1


def test_what_is_transparent_in_a_mask_is_black():
    mask = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    mask.putpixel((1, 0), (255, 255, 255, 0))
    assert list(pictures.as_mask(mask).tobytes()) == [255, 0]
