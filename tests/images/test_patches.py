"""Places of visual tokens in the picture, measured on the real image processors of many families."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sinkgate.images.layout import Sheet, lay_out, list_sheet, measure_places
from sinkgate.models.adapters.base import one_block, one_run


def processor(family, name, **options):
    module = importlib.import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    return getattr(module, f"{name}ImageProcessorPil")(**options)


def cut(crops, patch):
    """Crops of a picture as patches, (N, values), with their grids."""
    rows, columns = crops.shape[-2] // patch, crops.shape[-1] // patch
    patches = crops.unflatten(2, (rows, patch)).unflatten(4, (columns, patch)).permute(0, 2, 4, 1, 3, 5)
    return patches.flatten(3).flatten(0, 2).float(), [(rows, columns)] * len(crops)


def sheets_of(pixels_of, grids, token, sizes):
    crop = torch.cat([torch.full((rows * columns,), i) for i, (rows, columns) in enumerate(grids)])
    return lay_out(token, measure_places(pixels_of, sizes), crop, sizes, int(token.max()) + 1)


def covers(sheet, box, within=0.02):
    width, height = box[2] - box[0], box[3] - box[1]
    return sheet.box == pytest.approx(box, abs=within * max(width, height))


@pytest.mark.parametrize("size", [(640, 480), (300, 100), (90, 90), (41, 200)])
def test_resize_and_centre_crop(size):
    images = processor("clip", "CLIP", size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
    width, height = size
    side = min(size)
    (sheet,) = sheets_of(
        lambda pictures: cut(images(images=pictures, return_tensors="pt")["pixel_values"], 14)[0],
        [(8, 8)],
        torch.arange(64),
        [size],
    )
    assert sheet.grid == (8, 8) and torch.equal(sheet.tokens.flatten(), torch.arange(64))
    left, top = (width - side) / 2, (height - side) / 2
    assert covers(sheet, (left, top, left + side, top + side))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(40, 300), st.integers(40, 300)), min_size=1, max_size=3))
def test_pictures_of_any_size_flattened_and_merged(sizes):
    """Qwen2-VL's processor cuts patches itself, neighbours of a token one after the other."""
    images = processor("qwen2_vl", "Qwen2VL", size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 40})
    processed = images(images=[Image.new("RGB", size) for size in sizes], return_tensors="pt")
    grids = [(int(h), int(w)) for _, h, w in processed["image_grid_thw"]]
    token = one_run(grids, sum(h * w for h, w in grids) // 4)
    sheets = sheets_of(
        lambda pictures: images(images=pictures, return_tensors="pt")["pixel_values"].flatten(1), grids, token, sizes
    )
    first = 0
    for index, (sheet, (rows, columns), (width, height)) in enumerate(zip(sheets, grids, sizes, strict=True)):
        assert sheet.image == index and sheet.grid == (rows // 2, columns // 2)
        assert torch.equal(sheet.tokens.flatten(), torch.arange(first, first + sheet.tokens.numel())), "row by row"
        assert covers(sheet, (0, 0, width, height))
        first += sheet.tokens.numel()


@pytest.mark.parametrize("size", [(640, 480), (900, 300), (200, 260)])
def test_tiles_join_to_one_sheet_beside_the_overview(size):
    images = processor(
        "idefics3",
        "Idefics3",
        size={"longest_edge": 4 * 56},
        max_image_size={"longest_edge": 56},
        do_image_splitting=True,
    )

    def crops_of(pictures):
        return images(images=[pictures], return_tensors="pt")["pixel_values"].flatten(0, 1)

    _, grids = cut(crops_of([Image.new("RGB", size)]), 14)
    token = one_block(grids, len(grids) * 4)
    tiles, overview = sheets_of(lambda pictures: cut(crops_of(pictures), 14)[0], grids, token, [size])
    assert tiles.tokens.numel() == 4 * (len(grids) - 1) and overview.grid == (2, 2)
    assert covers(tiles, (0, 0, *size)) and covers(overview, (0, 0, *size))
    assert tiles.tokens[0, :4].tolist() == [0, 1, 4, 5], "the second tile lies right of the first"


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256)])
def test_padded_tiles_reach_beyond_the_picture(size):
    """LLaVA-NeXT keeps the shape of the picture and pads; patches that see padding alone have no place."""
    images = processor(
        "llava_next",
        "LlavaNext",
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )

    def crops_of(pictures):
        return images(images=pictures, return_tensors="pt")["pixel_values"].flatten(0, 1)

    patches, _ = cut(crops_of([Image.new("RGB", size)]), 7)
    places = measure_places(lambda pictures: cut(crops_of(pictures), 7)[0], [size])
    assert (places.image >= -1).all() and len(places.image) == len(patches)
    own = places.image == 0
    inside = (places.center[own] >= 0) & (places.center[own] <= torch.tensor(size))
    assert inside.all() and own[:64].all(), "the overview sees the picture only"
    if size[0] != size[1]:
        assert not own.all()


def test_a_sheet_spreads_values_and_finds_tokens():
    sheet = Sheet(torch.tensor([[2, -1], [0, 1]]), 0, (0, 0, 4, 4))
    assert sheet.spread(torch.tensor([5.0, 6.0, 7.0])).tolist() == [[7, 0], [5, 6]]
    assert sheet.find(1) == (1, 1) and sheet.find(3) is None
    assert sheet.view([Image.new("RGB", (9, 9))]).size == (4, 4)
    plain = list_sheet(20)
    assert plain.grid == (2, 16) and plain.view([]) is None and plain.tokens.max() == 19
    assert list_sheet(5).grid == (1, 5)


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), m=st.integers(1, 3), crops=st.integers(1, 3))
def test_blocks_and_runs_give_every_token_m_times_m_patches(rows, columns, m, crops):
    grids = [(rows * m, columns * m)] * crops
    for rule in (one_block, one_run):
        token = rule(grids, rows * columns * crops)
        assert token is not None and (token.bincount() == m * m).all()
    assert one_block(grids, rows * columns * crops + 1) is None or m * rows * columns * crops == 1


def test_a_picture_too_small_for_its_grid_has_no_sheet():
    images = processor("clip", "CLIP", size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
    assert not sheets_of(
        lambda pictures: cut(images(images=pictures, return_tensors="pt")["pixel_values"], 4)[0],
        [(28, 28)],
        torch.arange(784),
        [(6, 6)],
    )
